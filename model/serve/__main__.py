"""`python -m model.serve`: a trained run as an HTTP service, with a web page."""

from __future__ import annotations

import argparse
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from model.network.checkpoint import load_run
from model.recommend.recommender import Recommender
from model.serve.app import create_app
from model.serve.hosts import AllowedHosts
from model.serve.server import Server
from model.serve.service import Service
from preprocessing.spec.titles import read_titles
from workflows.common.cli import HelpFormatter
from workflows.common.errors import UserError, run_command
from workflows.common.progress import console, remarks
from workflows.device import DEVICES
from workflows.device.torch_device import torch_device


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m model.serve",
        description="Serve recommendations over HTTP.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder written by train.py")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared folder (default: the one the run used)")
    parser.add_argument(
        "--titles",
        type=Path,
        metavar="FILE",
        help="CSV or Parquet with item ids and titles (default: those of the prepared folder, if any)",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, metavar="N", help="port to listen on; 0 picks a free one")
    parser.add_argument(
        "--allowed-hosts",
        nargs="+",
        metavar="NAME",
        help="host names that requests may call the service by, besides loopback ones and --host; * for any",
    )
    parser.add_argument(
        "--unknown-users", choices=("error", "popular"), default="error", help="response for unknown users"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to score")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if not 0 <= args.port < 1 << 16:
        raise UserError(f"--port should be 0 to 65535, got {args.port}")
    hosts = AllowedHosts(args.host, args.allowed_hosts or ())
    run = load_run(args.run, torch_device(args.device, None))
    data = args.data or Path(run.config["data"])
    recommender = Recommender(run, data, in_memory=True)
    if recommender.note:
        remarks.print(recommender.note)
    own_titles = data / "titles.parquet"
    path = args.titles or (own_titles if own_titles.is_file() else None)
    answers = Service(recommender, read_titles(path) if path else {})
    app = create_app(answers, refuses_unknown=args.unknown_users == "error", hosts=hosts)
    with _listening(args.host, args.port) as listener:
        server = Server(app)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, server.handle_exit)  # uvicorn does so later, and re-raises them when it has shut down
        host, port = listener.getsockname()[:2]
        console.print(f"serving {args.run} at http://{f'[{host}]' if ':' in host else host}:{port}")
        server.run([listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as err:
        raise UserError(f"cannot listen on {host}, port {port} ({err}); choose others with --host and --port") from None


if __name__ == "__main__":
    run_command(main)
