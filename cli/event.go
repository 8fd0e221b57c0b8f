package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmand/openapi/client"
)

const (
	// maxEvent is the maximum size of an event in bytes.
	maxEvent = 4 << 20
	// reconnectPause is the time before the client connects to an event stream again.
	reconnectPause = time.Second
)

// listen calls visit for each new event that matches the filter, until ctx is done or visit
// fails. It connects again when the stream ends, and misses no event that the daemon still
// has. It returns the error of visit, or the error of the first connection.
func (a *app) listen(ctx context.Context, filter client.ListEventsParams, visit func(client.Event, json.RawMessage) error) error {
	var failed error // of visit
	connected := false
	for ctx.Err() == nil {
		r, err := client.NewListEventsRequest(server, &filter)
		if err != nil {
			return err
		}
		r.Header.Set("Accept", "text/event-stream")
		resp, err := a.stream(ctx, r, nil)
		if err == nil {
			connected = true
			err = eachEvent(resp.Body, func(e client.Event, raw json.RawMessage) error {
				filter.LastEventID = &e.Seq
				failed = visit(e, raw)
				return failed
			})
			resp.Body.Close()
		}
		var f *failure
		refused := errors.As(err, &f) && (f.final || f.status != exitNoDaemon && f.status != exitFailed)
		if failed != nil || err != nil && (!connected || refused) {
			return err
		}
		pause(ctx, reconnectPause)
	}
	return context.Cause(ctx)
}

// notEvents returns the error for a stream that no vmand sends. Connecting again is no use.
func notEvents(format string, args ...any) error {
	f := failf(exitFailed, format, args...).hint("is this the address of a vmand?")
	f.final = true
	return f
}

// eachEvent reads a stream of Server-Sent Events until its end.
func eachEvent(stream io.Reader, visit func(client.Event, json.RawMessage) error) error {
	lines := bufio.NewScanner(stream)
	lines.Buffer(make([]byte, 4096), maxEvent)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !ok {
			continue
		}
		var e client.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return notEvents("what the server sends is not an event: %v", err)
		}
		if err := visit(e, json.RawMessage(slices.Clone(bytes.TrimSpace(data)))); err != nil {
			return err
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return notEvents("an event is larger than %s", formatSize(maxEvent))
	}
	return lines.Err()
}

var eventColumns = []column[client.Event]{
	{head: "TIME", cell: func(e client.Event) string { return e.At.Local().Format(time.DateTime) }},
	{head: "EVENT", cell: func(e client.Event) string { return string(e.Type) }},
	{head: "RESOURCE", cell: func(e client.Event) string { return e.Resource }},
	{head: "DETAILS", cell: func(e client.Event) string { return eventDetails(e) }},
}

// eventDetails returns the data of an event as key=value, sorted by key.
func eventDetails(e client.Event) string {
	var words []string
	for key, v := range e.Data {
		if v == nil || v == "" {
			continue
		}
		text, err := json.Marshal(v)
		if s, ok := v.(string); ok || err != nil {
			text = []byte(s)
		}
		words = append(words, key+"="+string(text))
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

func eventName(e client.Event) string { return fmt.Sprint(e.Seq) }

func (a *app) eventCommand() *cobra.Command {
	var follow bool
	var since int64
	var filter client.ListEventsParams
	var kind, resource string
	c := &cobra.Command{
		Use:     "event",
		Aliases: []string{"events"},
		Short:   "Show what has happened, or follow it with -f",
		Args:    cobra.NoArgs,
		Example: "  vman event -f\n  vman event --resource vms/web-1 --type vm.",
	}
	f := c.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "wait for new events until Ctrl-C")
	f.Int64Var(&since, "since", 0, "only events after the event with this number")
	f.StringVar(&kind, "type", "", "only events of this type; a type that ends with a dot is a prefix, such as vm.")
	f.StringVar(&resource, "resource", "", "only events about this resource, such as vms/web-1")
	c.RunE = func(c *cobra.Command, _ []string) error {
		filter.Type, filter.Resource = given(c, "type", kind), given(c, "resource", resource)
		if follow {
			if c.Flags().Changed("since") {
				filter.Since = &since
			}
			return a.followEvents(c.Context(), filter)
		}
		return a.printEvents(c.Context(), filter, since)
	}
	return c
}

// printEvents lists the kept events. The API has no links between pages of events: the
// number of the last one is the position.
func (a *app) printEvents(ctx context.Context, filter client.ListEventsParams, since int64) error {
	l := newList(a.out, eventName, eventColumns)
	limit := pageSize
	filter.Limit = &limit
	for {
		filter.Since = &since
		count := 0
		err := each(ctx, a, func(e client.Event, raw json.RawMessage) error {
			count++
			since = max(since, e.Seq)
			return l.add(e, raw)
		})(client.NewListEventsRequest(server, &filter))
		if err != nil {
			return err
		}
		if count < limit {
			return l.end()
		}
	}
}

// followEvents prints events as they happen, one a line.
func (a *app) followEvents(ctx context.Context, filter client.ListEventsParams) error {
	return a.listen(ctx, filter, func(e client.Event, raw json.RawMessage) error {
		if a.out.form == "json" {
			_, err := fmt.Fprintf(a.out.w, "%s\n", raw)
			return err
		}
		if !a.out.people() {
			return a.out.item(eventName(e), raw)
		}
		_, err := fmt.Fprintf(a.out.w, "%s  %-18s %s  %s\n", e.At.Local().Format(time.DateTime), e.Type,
			oneLine(e.Resource), oneLine(eventDetails(e)))
		return err
	})
}
