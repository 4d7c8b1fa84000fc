#!/usr/bin/env python3
"""Print events from a hostaudit collector, one JSON object a line, and never miss one.

The cursor of the last event handled is kept in a file, so a restart goes on where this ended.
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
from google.protobuf.json_format import MessageToDict
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


def handle(event) -> None:
    """Your work goes here."""
    print(json.dumps(MessageToDict(event, preserving_proto_field_name=True)))


def follow(stub, messages, arguments, cursor: str) -> str:
    request = messages.TailRequest(
        cursor=cursor, where=arguments.where, until_now=arguments.until_now
    )
    if not cursor and arguments.from_start:
        request.since_time = 0
    for page in stub.Tail(request):
        for entry in page.events:
            handle(entry.event)
            cursor = entry.cursor
        sys.stdout.flush()
        # After the work: a crash repeats a page rather than skipping one.
        if page.events:
            write_cursor(arguments.cursor_file, cursor)
        if page.behind > 10_000:
            print(f"tail.py: {page.behind} events behind", file=sys.stderr)
    return cursor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="unix:///run/hostaudit/collector.sock",
                        help="unix:///path/to/collector.sock or host:port (%(default)s)")
    parser.add_argument("--where", default="", help="SQL predicate over the columns of events")
    parser.add_argument("--cursor-file", type=pathlib.Path, default="hostaudit.cursor")
    parser.add_argument("--from-start", action="store_true",
                        help="without a cursor, begin with the oldest event kept")
    parser.add_argument("--until-now", action="store_true", help="end when the present is reached")
    arguments = parser.parse_args()
    messages, services = load_client(PROTO)
    cursor = read_cursor(arguments.cursor_file)
    # gRPC names a unix socket by its path, which is no valid HTTP authority.
    options = [
        ("grpc.max_receive_message_length", 16 << 20),
        ("grpc.default_authority", "localhost"),
    ]
    with grpc.insecure_channel(arguments.server, options=options) as channel:
        stub = services.CollectorStub(channel)
        while True:
            try:
                cursor = follow(stub, messages, arguments, cursor)
                if arguments.until_now:
                    return
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
