package main

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// star says which packages of this module each package may import. A new arrow is
// a change of the design: see CONTRIBUTING.md.
var star = map[string][]string{
	".": {"cli", "config", "vm", "manager", "host", "openapi", "server", "store", "qemu", "network", "observer"},
	// The commands know the daemon only through its API, so that they can become a
	// separate program. Package main passes them the functions of the host that they need.
	"cli":      {"openapi/client"},
	"cmd/vman": {"cli"},
	// config holds the Options of these packages, so that an option is declared once,
	// where it is used. It calls none of their functions, and only main imports it.
	"config":                 {"manager", "server", "qemu", "network", "observer"},
	"failpoint":              {},
	"host":                   {},
	"vm":                     {},
	"manager":                {"vm", "failpoint"},
	"vm/vmtest":              {"vm"},
	"openapi":                {},
	"openapi/client":         {},
	"openapi/requests":       {}, // a program that go generate runs
	"server":                 {"vm", "openapi"},
	"store":                  {"vm"},
	"network":                {"vm", "failpoint", "host", "network/dhcp", "network/dns", "network/ndp"},
	"network/dhcp":           {"vm", "network/guard"},
	"network/dns":            {"vm", "network/guard"},
	"network/ndp":            {"vm", "network/guard"},
	"network/guard":          {"vm"},
	"network/guard/linktest": {"vm", "test/need"},
	"observer":               {"vm"},
	"qemu":                   {"vm", "failpoint", "host", "qemu/image", "qemu/qga", "qemu/qmp"},
	"qemu/image":             {"host"},
	"qemu/qga":               {},
	"qemu/qmp":               {},
	"qemu/qmp/qmptest":       {"qemu/qmp"},
	"test/need":              {},
	"test/harness":           {"openapi", "qemu/qmp", "test/need"},
	"test/api":               {},
	"test/bench":             {},
	"test/crash":             {},
	"test/debian":            {},
	"test/kvm":               {},
	"test/network":           {},
	"test/guest/vmt":         {},
}

// starOfTests holds the further packages that the tests of a package may import.
var starOfTests = map[string][]string{
	".":                {"openapi/client", "vm/vmtest"},
	"manager":          {"vm/vmtest", "store"},
	"openapi/requests": {"openapi"},
	"server":           {"vm/vmtest", "store", "openapi/client", "manager"},
	"observer":         {"vm/vmtest", "store", "manager"},
	"qemu":             {"qemu/qmp/qmptest", "test/need"},
	"network":          {"network/guard/linktest", "test/need"},
	"qemu/image":       {"test/need"},
	"network/dhcp":     {"network/guard/linktest"},
	"network/dns":      {"network/guard/linktest"},
	"network/ndp":      {"network/guard/linktest"},
	"network/guard":    {"network/guard/linktest"},
	"qemu/qmp":         {"qemu/qmp/qmptest", "test/need"},
	"test/api":         {"test/harness", "test/need", "openapi"},
	"test/bench":       {"test/harness", "openapi", "qemu/qmp", "store", "vm"},
	"test/crash":       {"test/harness", "test/need", "openapi", "qemu/qmp", "manager", "vm"}, // the verbs, for their fail points
	"test/debian":      {"test/harness", "openapi"},
	"test/kvm":         {"test/harness", "openapi"},
	"test/network":     {"test/harness", "openapi"},
}

// A source is one Go file of this module.
type source struct {
	path      string // from the root of the module
	dir       string // the package's, "." for main
	test      bool   // compiled for tests only
	generated bool
	fset      *token.FileSet
	ast       *ast.File
}

func (s source) position(n ast.Node) token.Position {
	p := s.fset.Position(n.Pos())
	p.Filename = s.path
	return p
}

// walk calls visit for every file of the checkout, except build results and foreign files.
func walk(t *testing.T, visit func(name string)) {
	t.Helper()
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name == ".git" || name == "build" || name == "coverage"):
			return fs.SkipDir
		case d.Type().IsRegular() && name != "vmand" && name != ".git": // a file in a work tree of its own
			visit(name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sources parses the Go files of this module; tools/ holds modules of their own.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	walk(t, func(name string) {
		if path.Ext(name) != ".go" || strings.HasPrefix(name, "tools/") || strings.Contains(name, "testdata/") {
			return
		}
		s := source{
			path:      name,
			dir:       path.Dir(name),
			test:      strings.HasSuffix(name, "_test.go"),
			generated: strings.HasSuffix(name, ".gen.go"),
			fset:      token.NewFileSet(),
		}
		var err error
		if s.ast, err = parser.ParseFile(s.fset, name, nil, parser.ParseComments); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	})
	if len(all) < 10 {
		t.Fatalf("found only %d Go files", len(all))
	}
	return all
}

func TestPackageImportsFollowTheTable(t *testing.T) {
	for _, s := range sources(t) {
		allowed, known := star[s.dir]
		if !known {
			t.Errorf("%s: package %s has no place in the star", s.path, s.dir)
			continue
		}
		if s.test {
			// A test in an external package imports the package itself.
			allowed = slices.Concat(allowed, starOfTests[s.dir], []string{s.dir})
		}
		for _, imp := range s.ast.Imports {
			name, _ := strconv.Unquote(imp.Path.Value)
			if name == "vmand" {
				name = "vmand/."
			}
			ours, isOurs := strings.CutPrefix(name, "vmand/")
			if isOurs && !slices.Contains(allowed, ours) {
				t.Errorf("%v: %s may not import %s", s.position(imp), s.dir, ours)
			}
		}
	}
}

// onlyTests are the packages that have nothing but tests.
var onlyTests = map[string]bool{"test/api": true, "test/bench": true, "test/crash": true, "test/debian": true, "test/kvm": true, "test/network": true}

func TestEveryPackageHasOnePackageComment(t *testing.T) {
	comments := map[string][]string{}
	for _, s := range sources(t) {
		if s.test && !onlyTests[s.dir] {
			continue
		}
		comments[s.dir] = slices.Concat(comments[s.dir], nil)
		if s.ast.Doc != nil {
			comments[s.dir] = append(comments[s.dir], s.path)
		}
	}
	for dir, files := range comments {
		if len(files) != 1 {
			t.Errorf("package %s has %d package comments, want one: %v", dir, len(files), files)
		}
	}
}

// Every exported identifier of the packages that others import must have a doc comment
// that starts with its name; Error needs none.
func TestExportedIdentifiersAreDocumented(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.generated || strings.HasPrefix(s.dir, "test/guest") || s.dir == "." {
			continue
		}
		for _, d := range s.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Name.Name != "Error" && exportedReceiver(d) && !startsWith(d.Doc, d.Name.Name) {
					t.Errorf("%v: %s has no doc comment that starts with its name", s.position(d), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					ts, ok := spec.(*ast.TypeSpec)
					if ok && ts.Name.IsExported() && !startsWith(ts.Doc, ts.Name.Name) && !startsWith(d.Doc, ts.Name.Name) {
						t.Errorf("%v: %s has no doc comment that starts with its name", s.position(ts), ts.Name.Name)
					}
				}
			}
		}
	}
}

// exportedReceiver reports whether f is a function, or a method of an exported type.
func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	typ := f.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if index, ok := typ.(*ast.IndexExpr); ok {
		typ = index.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

// startsWith reports whether a doc comment starts with a name, after an article.
func startsWith(doc *ast.CommentGroup, name string) bool {
	if doc == nil {
		return false
	}
	words := strings.Fields(doc.Text())
	if len(words) > 1 && (words[0] == "A" || words[0] == "An" || words[0] == "The") {
		words = words[1:]
	}
	return len(words) > 0 && strings.TrimRight(words[0], ",:") == name
}

// logKeys are the keys of log attributes: one word for one thing, in every package.
var logKeys = []string{
	"backup", "bytes_left", "caller", "config", "count", "data", "details", "disk", "dry_run", "err", "event", "file", "image",
	"ip", "is", "kind", "listen", "mac", "method", "migration", "mode", "network", "nic", "node", "offset", "op", "op_count",
	"options", "panic", "path", "pid", "port_forward", "program", "reason", "request_id", "resource", "restored_at", "server",
	"settings", "stack", "state", "state_dir", "status", "step", "subnet", "timeout", "took", "usual", "uuid", "version", "vm",
	"waiting", "was",
}

func TestLogKeysAreFromTheList(t *testing.T) {
	found := 0
	for _, s := range sources(t) {
		if s.test || s.generated || strings.HasPrefix(s.dir, "test/") {
			continue
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			for _, key := range attributeKeys(call) {
				found++
				if word, _ := strconv.Unquote(key.Value); !slices.Contains(logKeys, word) {
					t.Errorf("%v: log key %q is not one of logKeys", s.position(key), word)
				}
			}
			return true
		})
	}
	if found < 100 {
		t.Errorf("found only %d log keys", found)
	}
}

// attributeKeys returns the literal keys of a call of a logger.
func attributeKeys(call *ast.CallExpr) []*ast.BasicLit {
	first := 1 // after the message
	name := ""
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		name = f.Sel.Name
	case *ast.Ident: // level := log.Info; level(…)
		name = f.Name
	}
	switch name {
	case "Debug", "Info", "Warn", "level":
	case "Error":
		if len(call.Args) < 3 { // of an error or of a test
			return nil
		}
	case "With":
		first = 0
	default:
		return nil
	}
	var keys []*ast.BasicLit
	for i := first; i < len(call.Args); i += 2 {
		if lit, ok := call.Args[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			keys = append(keys, lit)
		}
	}
	return keys
}

// forbidden maps import path and name to why it is not used.
var forbidden = map[string]struct {
	why     string
	inTests bool // there too
}{
	"time.Sleep":   {"wait for what you wait for, with a context", false},
	"context.TODO": {"take the caller's context", false},
	"github.com/digitalocean/go-qemu/qmp.SocketMonitor":          {"it loses replies: use vmand/qemu/qmp", true},
	"github.com/digitalocean/go-qemu/qmp.NewSocketMonitor":       {"it loses replies: use vmand/qemu/qmp", true},
	"github.com/digitalocean/go-qemu/qmp.LibvirtRPCMonitor":      {"there is no libvirt here", true},
	"github.com/digitalocean/go-qemu/qmp.NewLibvirtRPCMonitor":   {"there is no libvirt here", true},
	"github.com/digitalocean/go-qemu/qmp/raw.NewMonitor":         {"its schema is years old", true},
	"github.com/digitalocean/go-qemu/hypervisor.NewSocketDriver": {"it loses replies: use vmand/qemu/qmp", true},
	"github.com/digitalocean/go-qemu/hypervisor.NewRPCDriver":    {"there is no libvirt here", true},
}

func TestForbiddenFunctionsAreNotUsed(t *testing.T) {
	for _, s := range sources(t) {
		if s.generated {
			continue
		}
		imports := map[string]string{} // name in this file to path
		for _, imp := range s.ast.Imports {
			p, _ := strconv.Unquote(imp.Path.Value)
			name := path.Base(p)
			if imp.Name != nil {
				name = imp.Name.Name
			}
			imports[name] = p
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Obj == nil {
				if law, bad := forbidden[imports[x.Name]+"."+sel.Sel.Name]; bad && (law.inTests || !s.test) {
					t.Errorf("%v: %s.%s: %s", s.position(sel), x.Name, sel.Sel.Name, law.why)
				}
			}
			return true
		})
	}
}

func TestFilesAreNamedByNoun(t *testing.T) {
	vague := []string{"util", "utils", "helper", "helpers", "type", "types", "common", "misc", "ports"}
	for _, s := range sources(t) {
		name := strings.TrimSuffix(strings.TrimSuffix(path.Base(s.path), ".go"), "_test")
		if slices.Contains(vague, name) || slices.Contains(vague, path.Base(s.dir)) {
			t.Errorf("%s: the name does not describe the content", s.path)
		}
	}
}

// The project builds anywhere: no file names one machine's directories, nor the
// hosts that packages come from. (The words are cut, or this file would name them.)
func TestNoFileNamesAMachineOrARegistry(t *testing.T) {
	words := []string{
		"/wo" + "rk/", "proxy.gol" + "ang.org", "sum.gol" + "ang.org", "registry.npm" + "js.org",
		"pypi" + ".org", "crates" + ".io", "deb.deb" + "ian.org", "security.deb" + "ian.org",
	}
	walk(t, func(name string) {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range words {
			if bytes.Contains(content, []byte(word)) {
				t.Errorf("%s names %s", name, word)
			}
		}
	})
}
