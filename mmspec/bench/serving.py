"""How the server bears load: `python -m mmspec.bench.serving --help`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryFile
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from rich.console import Console

from mmspec.bench import report
from mmspec.cli.common import run_function
from mmspec.errors import MmspecError
from mmspec.serve.batcher import IDLE
from mmspec.versions import provenance

console = Console(stderr=True)

PROMPTS = ("a red heart, 3d style", "a butterfly, flat style", "a sunflower, 3d style", "a strawberry, cartoon style")


@contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """Address and process number of `mmspec serve` with these options, ended afterwards."""
    command = [sys.executable, "-m", "mmspec", "serve", "--port", "0", "--quiet", *options]
    with TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, text=True)
        try:
            match = None
            while not match and process.poll() is None:
                time.sleep(0.2)
                log.seek(0)
                match = re.search(r"at (http://\S+)", output := log.read())
            if not match:
                raise MmspecError(f"the server did not start: {output[-500:]}")
            yield match[1], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def memory(pid: int) -> int:
    """Resident bytes of a server's process once it has seen that there is nothing to do."""
    time.sleep(2 * IDLE)
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 if match else 0


def draw(address: str, number: int) -> tuple[str, float, dict]:
    """The picture of request `number` in base64, the seconds it took (busy answers are asked again), and its
    statistics.
    """
    body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number}
    began = time.perf_counter()
    while True:
        request = Request(
            f"{address}/v1/images/generations", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urlopen(request, timeout=600) as answer:
                reply = json.load(answer)
            return reply["data"][0]["b64_json"], time.perf_counter() - began, reply["metrics"]["speculative_decoding"]
        except HTTPError as error:
            if error.code != 429:
                raise
            time.sleep(float(error.headers["Retry-After"]))


def measure(address: str, clients: int, requests: int, references: list[str]) -> dict:
    """`requests` pictures asked for by `clients` at once, each compared with what one client got alone."""
    latencies, errors, wrong, lengths, tokens = [], 0, 0, [], 0
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for number, call in enumerate(
            [pool.submit(draw, address, number % len(references)) for number in range(requests)]
        ):
            try:
                picture, seconds, stats = call.result()
            except (OSError, HTTPException):
                errors += 1
                continue
            latencies.append(seconds)
            lengths.append(stats["mean_acceptance_length"])
            tokens += stats["tokens"]
            wrong += picture != references[number % len(references)]
    spent = time.perf_counter() - began
    if not latencies:
        raise MmspecError(f"all of {requests} requests failed: look at what the server says")
    return {
        "clients": clients,
        "requests": requests,
        "errors": errors,
        "different": wrong,
        "pictures_per_second": len(latencies) / spent,
        "tokens_per_second": tokens / spent,
        "p50": float(np.percentile(latencies, 50)),
        "p95": float(np.percentile(latencies, 95)),
        "mean_acceptance_length": float(np.mean(lengths)),
    }


def markdown(results: dict) -> str:
    """The table."""
    heads = (
        "rows",
        "clients",
        "requests",
        "errors",
        "different",
        "pictures/s",
        "tokens/s",
        "p50",
        "p95",
        "accepted length",
    )
    origin = ", ".join(f"{key} {value}" for key, value in results["provenance"].items())
    lines = [
        f"| {row['rows']} | {row['clients']} | {row['requests']} | {row['errors']} | {row['different']} | "
        f"{row['pictures_per_second']:.2f} "
        f"| {row['tokens_per_second']:.0f} | {row['p50']:.2f} s | {row['p95']:.2f} s | "
        f"{row['mean_acceptance_length']:.2f} |"
        for row in results["rows"]
    ]
    table = "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines])
    levels = ", ".join(f"{size / 1e6:.0f} MB" for size in results["memory"])
    title = f"# Server under load, {results['model']}, {results['dtype']}"
    return f"{title}\n\n{origin}\n\n{table}\n\nMemory of the server before and after each line: {levels}\n"


def main(
    out: Path = Path("docs/results/server"),
    model: str = "emoji-64",
    clients: Sequence[int] = (1, 4, 16, 64),
    rows: Sequence[int] = (16, 1),
    pictures: int = 16,
    dtype: str = "bf16",
) -> None:
    """Ask a server for pictures from many clients at once; compare each with what one client alone gets. Writes
    load.json and load.md.

    Args:
        clients: how many ask at once.
        rows: how many pictures share a pass; 1 is one after the other.
        pictures: how many different ones are asked for; each client asks for at least one.
    """
    results: dict = {
        "model": model,
        "dtype": dtype,
        "provenance": provenance("cpu"),
        "rows": [],
        "memory": [],
    }
    out.mkdir(parents=True, exist_ok=True)
    references: list[str] = []
    for most in rows:
        with server("--models", model, "--dtype", dtype, "--rows", str(most), "--queue", "64") as (address, pid):
            drawn_alone = [draw(address, number)[0] for number in range(pictures)]
            references = references or drawn_alone
            results["memory"].append(memory(pid))
            for count in clients:
                results["rows"].append({"rows": most} | measure(address, count, max(count, pictures), references))
                results["memory"].append(memory(pid))
                console.print(results["rows"][-1])
                report.save(out, "load", results, markdown(results))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_function(main)
