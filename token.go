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
	adminToken      = "admin"       // name of the token that always exists
	adminTokenFile  = "admin.token" // in the state directory
	minSecretLength = 32            // bytes
)

// ensureAdminToken makes the secret in the file admin.token of dir the admin token
// of the API. If the file does not exist, a new secret replaces the old one. If it
// exists, its secret is kept, also for a new database.
func ensureAdminToken(ctx context.Context, tokens vm.TokenStore, dir string, log *slog.Logger) error {
	path := filepath.Join(dir, adminTokenFile)
	hash, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		var secret string
		secret, hash = server.NewToken()
		// The file comes first: after a crash here, the next start reads it.
		err = writeFile(path, []byte(secret+"\n"))
	}
	if err != nil {
		return fmt.Errorf("admin token: %w", err)
	}
	stored, err := tokens.Tokens(ctx)
	if err != nil {
		return fmt.Errorf("admin token: %w", err)
	}
	log.Info("admin token", "path", path)
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

// readSecret returns the hash of the secret in a file. It sets the mode of the file
// to 0600.
func readSecret(path string) (hash [32]byte, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return hash, err
	}
	secret := strings.TrimSpace(string(text))
	if len(secret) < minSecretLength || strings.ContainsAny(secret, " \t\r\n") {
		return hash, fmt.Errorf("%s must contain one word of at least %d bytes: remove the file to get a new token",
			path, minSecretLength)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return hash, err
	}
	return sha256.Sum256([]byte(secret)), nil
}

// writeFile writes a private file durably: after a crash the file has the new
// content or does not exist.
func writeFile(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
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
