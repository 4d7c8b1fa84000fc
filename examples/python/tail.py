#!/usr/bin/env python3
"""Print events from a hostaudit collector, one JSON object a line, and never miss one.

The cursor of what was handled is kept in a file, so a restart goes on where this ended. What is
wanted is said by filters, each an audit.v1.EventFilter as JSON; in a program of your own write
    messages.EventFilter(kinds=[event_pb2.KIND_EXEC], conditions=[
        messages.Condition(column="process_exe", prefixes=["/tmp/", "/dev/shm/"])])
Client code is generated from the .proto files when the program starts.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import grpc
from google.protobuf.json_format import MessageToDict, Parse, ParseError
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
RETRY_SECONDS = 2


def load_client(proto: pathlib.Path):
    """Generate the modules of audit.v1 and import them."""
    out = tempfile.mkdtemp(prefix="hostaudit-proto-")
    files = ["event", "collector"]
    arguments = ["protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(arguments + [f"audit/v1/{name}.proto" for name in files]) != 0:
        sys.exit(f"tail.py: no client can be generated from {proto}; is it hostaudit's proto folder?")
    sys.path.insert(0, out)
    from audit.v1 import collector_pb2, collector_pb2_grpc

    return collector_pb2, collector_pb2_grpc


def read_cursor(path: pathlib.Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def write_cursor(path: pathlib.Path, cursor: str) -> None:
    """Replace the file as a whole, so that a crash leaves the old cursor or the new one."""
    new = path.with_suffix(".new")
    new.write_text(cursor + "\n")
    os.replace(new, path)


def handle(entry) -> None:
    """Your work goes here. An event of which fields were left out says so: it proves nothing."""
    event = MessageToDict(entry.event, preserving_proto_field_name=True)
    if entry.masked:
        event["masked"] = True
    print(json.dumps(event))


def tell(lagged) -> None:
    """Nothing is skipped; but someone may want to know that this program is too slow."""
    if lagged.over:
        print("tail.py: caught up", file=sys.stderr)
    else:
        since = time.strftime("%H:%M:%S", time.localtime(lagged.since_time / 1e6))
        print(f"tail.py: {lagged.events} events behind, since {since}", file=sys.stderr)


def request(messages, arguments, cursor: str):
    wanted = messages.TailRequest(
        cursor=cursor,
        where=arguments.where,
        allow=[Parse(text, messages.EventFilter()) for text in arguments.allow],
        deny=[Parse(text, messages.EventFilter()) for text in arguments.deny],
        fields=arguments.field,
        lagged_events=arguments.lagged_events,
        until_now=arguments.until_now,
    )
    if not cursor and arguments.from_start:
        wanted.since_time = 0
    return wanted


def follow(stub, messages, arguments, cursor: str) -> str:
    for page in stub.Tail(request(messages, arguments, cursor)):
        for entry in page.events:
            handle(entry)
        sys.stdout.flush()
        if page.missing_events:
            print(f"tail.py: {page.missing_events} stored events are missing", file=sys.stderr)
        if page.HasField("lagged"):
            tell(page.lagged)
        # After the work: a crash repeats a page rather than skipping one.
        cursor = page.cursor
        write_cursor(arguments.cursor_file, cursor)
    return cursor


def connect(arguments):
    """With the certificate that `hostaudit pki enroll` got, where the server is an https one."""
    options = [("grpc.max_receive_message_length", 16 << 20)]
    if not arguments.server.startswith("https://"):
        # gRPC names a unix socket by its path, which is no valid HTTP authority.
        options.append(("grpc.default_authority", "localhost"))
        return grpc.insecure_channel(arguments.server, options=options)
    try:
        ca, key, certificate = [
            (arguments.tls_dir / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem")]
    except OSError as error:
        sys.exit(f"tail.py: {error}; `hostaudit pki enroll --dir {arguments.tls_dir}` gets a certificate")
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.secure_channel(arguments.server.removeprefix("https://"), credentials, options=options)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="unix:///run/hostaudit/collector.sock",
                        help="unix:///path/to/collector.sock, https://host:port, or host:port "
                             "without TLS (%(default)s)")
    parser.add_argument("--tls-dir", type=pathlib.Path, default="/etc/hostaudit/tls",
                        help="directory of ca.pem, cert.pem and key.pem for https (%(default)s)")
    parser.add_argument("--where", default="", help="SQL predicate over the columns of events")
    parser.add_argument("--allow", action="append", default=[], metavar="JSON",
                        help='only events that match, or match another --allow; for example '
                             '{"kinds": ["KIND_EXEC"], "conditions": '
                             '[{"column": "process_uid", "equals": ["0"]}]}')
    parser.add_argument("--deny", action="append", default=[], metavar="JSON",
                        help="but none that match this one")
    parser.add_argument("--field", action="append", default=[], metavar="NAME",
                        help="only these columns (process_exe) or objects (process)")
    parser.add_argument("--lagged-events", type=int, default=0, metavar="N",
                        help="further behind than this is told (the collector's default)")
    parser.add_argument("--cursor-file", type=pathlib.Path, default="hostaudit.cursor")
    parser.add_argument("--from-start", action="store_true",
                        help="without a cursor, begin with the oldest event kept")
    parser.add_argument("--until-now", action="store_true", help="end when the present is reached")
    arguments = parser.parse_args()
    messages, services = load_client(PROTO)
    cursor = read_cursor(arguments.cursor_file)
    with connect(arguments) as channel:
        stub = services.CollectorStub(channel)
        while True:
            try:
                cursor = follow(stub, messages, arguments, cursor)
                if arguments.until_now:
                    return
            except ParseError as error:
                sys.exit(f"tail.py: not an audit.v1.EventFilter: {error}")
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or arguments.until_now:
                    sys.exit(f"tail.py: {error.code().name}: {error.details()}")
                print(f"tail.py: {error.details()}; trying again", file=sys.stderr)
                cursor = read_cursor(arguments.cursor_file)
            time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):
        pass
