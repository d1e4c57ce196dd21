"""The table of docs/benchmarks/scaling-out.md: replicas that come and go under load, and what caches find.

    python3 tests/scaling/scaling_out.py [--build build/dev] [--seconds 20] [--json FILE]
"""

import argparse
import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def measure_failover(seconds):
    import failover_test

    load, log, killed, rows = failover_test.failover(
        24, [16, 48, 160], lambda load: time.sleep(seconds)
    )
    lost = [request for request in load.requests if not request.finished]
    elsewhere = [r for r in lost if log[r.request_id]["replica"] != killed or not r.began]
    print(failover_test.table(rows))
    print(f"lost that were not streams of the killed replica: {len(elsewhere)}\n")
    names = ("phase", "sent", "finished", "retried", "lost")
    return {"rows": [dict(zip(names, row)) for row in rows], "lost_elsewhere": len(elsewhere)}


def measure_affinity():
    import affinity
    import programs
    import replicas

    work = {"contexts": 24, "questions": 10, "clients": 8}
    rows = []

    def row(name, kind, servers, address, **settings):
        affinity.ask(address, kinds=[kind], **work, **settings)
        rows.append({"servers": name, "kind": kind, "hit_rate": round(affinity.hit_rate(servers), 4)})
        print("{servers:40}{kind:12}{hit_rate:8.3f}".format(**rows[-1]))

    for kind in ("prompts", "documents"):
        with programs.server("--threads", "1") as server:
            row("one", kind, [server], server.address)
        variants = {"three, Envoy, x-photon-affinity": None}
        if kind == "prompts":
            variants["three, Envoy, least request"] = ""
        for name, chosen in variants.items():
            with replicas.replicas(3, "--threads", "1") as servers:
                with replicas.envoy(servers.servers) as envoy:
                    row(name, kind, servers.servers, envoy.address, affinity=chosen)
    return {"work": work, "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/dev")
    parser.add_argument("--seconds", type=float, default=20, help="of load between events")
    parser.add_argument("--json", type=pathlib.Path, help="where to keep the figures")
    arguments = parser.parse_args()

    build = arguments.build.resolve()
    os.environ.setdefault("PHOTON_SERVER_PROGRAM", str(build / "server/photon-server"))
    os.environ.setdefault("PHOTON_CLI_PROGRAM", str(build / "client/photon"))
    os.environ.setdefault("PHOTON_TEST_MODEL", str(ROOT / "models/demo"))
    sys.path[:0] = [str(ROOT / "tests/e2e"), str(build / "tests/e2e/stubs"), str(build / "client/python/package")]

    figures = {"failover": measure_failover(arguments.seconds), "affinity": measure_affinity()}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
