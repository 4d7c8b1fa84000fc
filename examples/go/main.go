// Prints who executed what and who connected where, and never misses an event: the cursor of what
// was handled is kept in a file, so that a restart goes on where this ended.
//
// Usage: consumer [unix:///run/hostaudit/collector.sock | 127.0.0.1:4620] [CURSOR-FILE]
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"example.org/consumer/auditv1"
)

const retry = 2 * time.Second

func main() {
	server, cursorFile := "unix:///run/hostaudit/collector.sock", "hostaudit.cursor"
	if len(os.Args) > 1 {
		server = os.Args[1]
	}
	if len(os.Args) > 2 {
		cursorFile = os.Args[2]
	}
	connection, err := grpc.NewClient(server,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// The path of a unix socket is no valid HTTP authority.
		grpc.WithAuthority("localhost"),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	client := auditv1.NewCollectorClient(connection)
	for {
		err := follow(client, cursorFile)
		if err != nil && status.Code(err) != codes.Unavailable {
			log.Fatal(err)
		}
		log.Printf("the collector went away (%v); trying again", err)
		time.Sleep(retry)
	}
}

// wanted is any of Allow (each of which must hold whole), and none of Deny.
func wanted(cursor string) *auditv1.TailRequest {
	return &auditv1.TailRequest{
		Cursor: cursor,
		Allow: []*auditv1.EventFilter{
			{Kinds: []auditv1.Kind{auditv1.Kind_KIND_EXEC}},
			{
				Kinds: []auditv1.Kind{auditv1.Kind_KIND_CONNECT},
				Conditions: []*auditv1.Condition{{
					Column:   "socket_peer_address",
					Networks: []string{"10.0.0.0/8", "fe80::/10"},
				}},
			},
		},
		Deny: []*auditv1.EventFilter{{
			Conditions: []*auditv1.Condition{{
				Column:   "process_exe",
				Prefixes: []string{"/usr/lib/systemd/"},
			}},
		}},
		Fields: []string{"host_name", "process_exe", "process_argv", "socket_peer"},
	}
}

// follow ends without an error when the collector stops.
func follow(client auditv1.CollectorClient, cursorFile string) error {
	cursor, err := os.ReadFile(cursorFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	pages, err := client.Tail(ctx, wanted(strings.TrimSpace(string(cursor))))
	if err != nil {
		return err
	}
	for {
		page, err := pages.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, entry := range page.GetEvents() {
			handle(entry.GetEvent())
		}
		tell(page)
		// After the work: a crash repeats a page rather than skipping one.
		if err := writeCursor(cursorFile, page.GetCursor()); err != nil {
			return err
		}
	}
}

// handle is where your work goes.
func handle(event *auditv1.Event) {
	host, process := event.GetHost().GetName(), event.GetProcess()
	if peer := event.GetSocket().GetPeer(); peer != nil {
		fmt.Println(host, process.GetExe(), "->", peer.GetAddress())
		return
	}
	fmt.Printf("%s %q\n", host, process.GetArgv())
}

// tell says what someone may want to know; nothing was skipped.
func tell(page *auditv1.TailResponse) {
	if missing := page.GetMissingEvents(); missing > 0 {
		log.Printf("%d stored events are missing", missing)
	}
	lagged := page.GetLagged()
	switch {
	case lagged == nil:
	case lagged.GetOver():
		log.Print("caught up")
	default:
		since := time.UnixMicro(lagged.GetSinceTime())
		log.Printf("%d events behind, since %s", lagged.GetEvents(), since.Format(time.RFC3339))
	}
}

// writeCursor replaces the file as a whole, so that a crash leaves the old cursor or the new one.
func writeCursor(path, cursor string) error {
	if err := os.WriteFile(path+".new", []byte(cursor+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
