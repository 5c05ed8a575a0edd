package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/tester"
)

// Test runs the Rego tests (rules whose names begin with test_) of each directory, and reports on out as `opa test`
// does. Policies have the language here that they have when they are served: what is forbidden there does not
// compile here, and a function that fails fails the test. ok tells that all passed; finding none is an error.
func Test(ctx context.Context, dirs []string, out io.Writer, verbose bool) (ok bool, err error) {
	var results []*tester.Result
	for _, dir := range dirs {
		list, err := testDir(ctx, dir)
		if err != nil {
			return false, fmt.Errorf("%s: %w", dir, err)
		}
		if len(list) == 0 {
			return false, fmt.Errorf("%s: no tests: write rules whose names begin with test_ in *_test.rego", dir)
		}
		results = append(results, list...)
	}
	// They come in any order.
	slices.SortFunc(results, func(a, b *tester.Result) int {
		return cmp.Or(cmp.Compare(a.Location.File, b.Location.File), cmp.Compare(a.Location.Row, b.Location.Row))
	})
	ok = true
	ch := make(chan *tester.Result, len(results))
	for _, r := range results {
		ok = ok && (r.Pass() || r.Skip)
		ch <- r
	}
	close(ch)
	return ok, tester.PrettyReporter{Output: out, Verbose: verbose, FailureLine: true, LocalVars: verbose}.Report(ch)
}

func testDir(ctx context.Context, dir string) ([]*tester.Result, error) {
	f, err := readTree(dir, true)
	if err != nil {
		return nil, err
	}
	caps := capabilities()
	parsed, values, err := f.parse(caps)
	if err != nil {
		return nil, err
	}
	modules := make(map[string]*ast.Module, len(parsed))
	for name, m := range parsed {
		modules[path.Join(dir, name)] = m
	}
	data, err := newData(values)
	if err != nil {
		return nil, err
	}
	runner := tester.NewRunner().
		SetCompiler(newCompiler(caps, data).WithEnablePrintStatements(true)).
		SetStore(data.store).
		SetModules(modules).
		CapturePrintOutput(true).
		RaiseBuiltinErrors(true).
		EnableTracing(true)
	txn, err := data.store.NewTransaction(ctx, storage.TransactionParams{})
	if err != nil {
		return nil, err
	}
	defer data.store.Abort(ctx, txn)
	ch, err := runner.RunTests(ctx, txn)
	if err != nil {
		var list ast.Errors
		if errors.As(err, &list) {
			return nil, compileError(list)
		}
		return nil, err
	}
	var results []*tester.Result
	for r := range ch {
		results = append(results, r)
	}
	return results, ctx.Err()
}
