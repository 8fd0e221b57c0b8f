package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vmand/server"
	"vmand/vm"
)

const (
	adminToken      = "admin"       // the name of the token that is always there
	adminTokenFile  = "admin.token" // in the state directory
	minSecretLength = 32            // bytes
)

// ensureAdminToken sees to it that the secret in the file admin.token of dir lets
// in. The file decides: without it a new secret is made, which replaces the old
// one, and a secret it holds is taken, so a new database changes no token.
func ensureAdminToken(ctx context.Context, tokens vm.TokenStore, dir string, log *slog.Logger) error {
	path := filepath.Join(dir, adminTokenFile)
	hash, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		var secret string
		secret, hash = server.NewToken()
		// The file is first: after a crash in between, the next start takes it.
		err = writeFile(path, []byte(secret+"\n"))
	}
	if err != nil {
		return fmt.Errorf("admin token: %w", err)
	}
	stored, err := tokens.Tokens(ctx)
	if err != nil {
		return fmt.Errorf("admin token: %w", err)
	}
	log.Info("the admin token for the API is in a file", "file", path)
	for _, t := range stored {
		if t.Name == adminToken && t.Hash == hash {
			return nil
		}
	}
	err = tokens.PutToken(ctx, vm.Token{Name: adminToken, Role: vm.RoleAdmin, Hash: hash, CreatedAt: time.Now()})
	if err != nil {
		return fmt.Errorf("admin token: %w", err)
	}
	return nil
}

// readSecret returns the hash of the secret in a file, and makes the file
// private if it is not.
func readSecret(path string) (hash [32]byte, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return hash, err
	}
	secret := strings.TrimSpace(string(text))
	if len(secret) < minSecretLength || strings.ContainsAny(secret, " \t\r\n") {
		return hash, fmt.Errorf("%s does not hold one word of at least %d bytes: remove it to have a new one made", path, minSecretLength)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return hash, err
	}
	return sha256.Sum256([]byte(secret)), nil
}

// writeFile writes a private file that is whole, and there after a power cut, or
// not there at all.
func writeFile(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // of mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(content); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
