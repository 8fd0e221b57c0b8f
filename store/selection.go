package store

import "vmand/vm"

// A selection is a query of one page of a table in order of creation.
type selection struct {
	from  string // the tables
	seq   string // the column that the page is ordered by
	where string // conditions, each followed by " AND "
	args  []any
}

func from(table string) selection { return selection{from: table, seq: "seq"} }

// and adds a condition on one argument, unless that is empty.
func (q *selection) and(condition, arg string) {
	if arg != "" {
		q.where += condition + " AND "
		q.args = append(q.args, arg)
	}
}

// only adds a condition that a partial index has, if wanted is set. SQLite takes
// such an index only for a condition in the index's own words.
func (q *selection) only(wanted bool, condition string) {
	if wanted {
		q.where += condition + " AND "
	}
}

// label selects the rows that have a label, unless key is empty. CROSS JOIN makes
// SQLite go through the index table, which has the rows with the label in order of
// their seq, and read only those of the page.
func (q *selection) label(index, key, value string) {
	if key != "" {
		q.from = index + " CROSS JOIN " + q.from + " ON seq = owner"
		q.seq = "owner"
		q.where += "key = ? AND value = ? AND "
		q.args = append(q.args, key, value)
	}
}

// sql returns the query of the columns of a page, and its arguments.
func (q *selection) sql(columns string, p vm.Page) (string, []any) {
	limit := -1
	if p.Limit > 0 {
		limit = p.Limit
	}
	query := "SELECT " + columns + " FROM " + q.from + " WHERE " + q.where + q.seq + " > ? ORDER BY " + q.seq + " LIMIT ?"
	return query, append(q.args, p.After, limit)
}
