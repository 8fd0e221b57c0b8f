package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmand/host"
	"vmand/server"
	"vmand/vm"
)

const (
	adminToken      = "admin"       // name of the token that always exists
	adminTokenFile  = "admin.token" // in the state directory
	minSecretLength = 32            // bytes
	maxSecretFile   = 4 << 10       // bytes
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
		err = writeSecret(dir, secret)
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
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return hash, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
	if err != nil {
		return hash, err
	}
	secret := strings.TrimSpace(string(text))
	if len(secret) < minSecretLength || strings.ContainsAny(secret, " \t\r\n") {
		return hash, fmt.Errorf("%s must contain one word of at least %d bytes: remove the file to get a new token",
			path, minSecretLength)
	}
	if err := f.Chmod(0o600); err != nil {
		return hash, err
	}
	return sha256.Sum256([]byte(secret)), nil
}

// writeSecret writes the file of the admin token durably, readable by its owner only.
func writeSecret(dir, secret string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return host.WriteFile(root, adminTokenFile, 0o600, func(f *os.File) error {
		_, err := f.WriteString(secret + "\n")
		return err
	})
}
