#!/usr/bin/env python3
"""What orchestration costs: many tasks that do nothing, and a chain of short ones, beside peers.

    python3 benches/orchestration.py [--rallrec PATH] [--nats PATH] [--tasks N] [--slots N] [--peers PYTHON]

Rows, each in its own scratch folder on the same disk:
  fan-out and fan-in of N tasks   `rallrec run`, and a cluster (nats-server, coordinator, worker) with `submit --wait`;
                                  every result is committed and synced to the disk before it counts
  the same run again              everything is reused
  a chain of 40 tasks of 10 ms    as in Windmill's suite
  dispatch                        in a chain of 400 tasks of 1 ms: from the commit that makes a task ready to the record that
                                  a worker has begun it, as the coordinator's journal tells (p50 and p99)
  ray, dask                       the same fan and chain, whose results are kept in memory only (--peers: a Python that
                                  has `ray` and `distributed`)

Times are wall clock from the command's start to its end for `rallrec` (program start and compilation of the pipeline
included), and without the start of the service for peers. Machines are noisy: compare within one run of this script.
"""
import argparse, json, os, pathlib, shutil, socket, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHAIN, NAP = 40, 10
DISPATCHES, BLINK = 400, 1

PEER = '''
import sys, time
name, tasks, chain, nap = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) / 1000
def nothing(i): return i
def gather(xs): return len(xs)
def sleep(x): time.sleep(nap); return x
if name == "ray":
    import ray
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    r = ray.remote
    nothing, total, sleep = r(nothing), r(lambda *xs: len(xs)), r(sleep)
    ray.get([nothing.remote(i) for i in range(100)])
    start = time.time()
    assert ray.get(total.remote(*[nothing.remote(i) for i in range(tasks)])) == tasks
    fan = time.time() - start
    start = time.time()
    x = 0
    for _ in range(chain): x = sleep.remote(x)
    ray.get(x)
    print(fan, time.time() - start)
else:
    from distributed import Client
    if __name__ == "__main__":
        client = Client(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None)
        client.gather(client.map(nothing, range(100), pure=False))
        start = time.time()
        assert client.submit(gather, client.map(nothing, range(tasks), pure=False)).result() == tasks
        fan = time.time() - start
        start = time.time()
        x = 0
        for _ in range(chain): x = client.submit(sleep, x, pure=False)
        x.result()
        print(fan, time.time() - start)
        client.close()
'''


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def chain_pipeline(folder, links=CHAIN, milliseconds=NAP):
    # Another row count makes other keys, so that no chain finds another's results.
    lines = ["rallrec: 1", f"name: chain-{links}", "stages:", "  link-0:", "    kind: rows", f"    with: {{count: {links}}}"]
    for i in range(1, links + 1):
        lines += [f"  link-{i}:", "    kind: wait", f"    needs: {{rows: link-{i - 1}}}", f"    with: {{milliseconds: {milliseconds}}}"]
    path = folder / f"chain-{links}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def dispatch(store):
    """p50 and p99 of the milliseconds from a link's commit to the next one's start, of the latest run in a store."""
    run = max((store / "runs").iterdir())  # their names begin with the time
    events = []
    for record in sorted((run / "journal").iterdir()):
        events += json.loads(record.read_text().split("\n", 1)[1])["events"]
    at = {name: {e["task"]["stage"]: e["at"] for e in events if e["event"] == name} for name in ["task_committed", "task_started"]}
    waits = sorted(at["task_started"][link] - at["task_committed"][link - 1] for link in range(1, DISPATCHES + 1))
    return waits[len(waits) // 2], waits[len(waits) * 99 // 100]


def timed(command, environment, quiet=True):
    start = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    took = time.time() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return took


def cpu_seconds(process):
    """User and system time of a process so far."""
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def embedded(options, folder):
    environment = {**os.environ, "RALLREC_HOME": str(folder / "home")}
    run = [options.rallrec, "run", "--slots", str(options.slots)]
    fan = [*run, ROOT / "pipelines/fan.yaml", "--set", f"tasks={options.tasks}"]
    figures = timed(fan, environment), timed(fan, environment), timed([*run, chain_pipeline(folder)], environment)
    timed([*run, chain_pipeline(folder, DISPATCHES, BLINK)], environment)
    return *figures, dispatch(folder / "home" / "store")


def cluster(options, folder):
    nats_port, port = free_port(), free_port()
    store, home = folder / "store", folder / "home"
    common = f'store = "{store}"\n[nats]\nservers = ["nats://127.0.0.1:{nats_port}"]\n'
    (folder / "coordinator.toml").write_text(f'listen = "127.0.0.1:{port}"\n{common}')
    (folder / "worker.toml").write_text(f"slots = {options.slots}\n{common}")
    environment = {**os.environ, "RALLREC_HOME": str(home), "RALLREC_COORDINATOR": f"http://127.0.0.1:{port}"}
    log = open(folder / "log", "w")
    start = lambda *command: subprocess.Popen([str(c) for c in command], env=environment, stdout=log, stderr=log)
    services = [start(options.nats, "-js", "-sd", folder / "jetstream", "-a", "127.0.0.1", "-p", nats_port)]
    try:
        while True:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", nats_port)) == 0:
                    break
            time.sleep(0.05)
        services.append(start(options.rallrec, "coordinator", "--config", folder / "coordinator.toml"))
        services.append(start(options.rallrec, "worker", "--config", folder / "worker.toml"))
        while True:
            seen = subprocess.run([options.rallrec, "workers"], env=environment, capture_output=True, text=True)
            if seen.returncode == 0 and "cpu" in seen.stdout:
                break
            if any(service.poll() is not None for service in services):
                sys.exit((folder / "log").read_text())
            time.sleep(0.2)
        submit = [options.rallrec, "submit", "--wait"]
        fan = [*submit, ROOT / "pipelines/fan.yaml", "--set", f"tasks={options.tasks}"]
        timed([*submit, ROOT / "pipelines/fan.yaml", "--set", "tasks=20"], environment)
        before = [cpu_seconds(service) for service in services]
        took = timed(fan, environment)
        spent = [1e6 * (cpu_seconds(service) - b) / options.tasks for service, b in zip(services, before)]
        print("cluster: CPU a task: nats-server {:.0f} us, coordinator {:.0f} us, worker {:.0f} us".format(*spent))
        figures = took, timed([*fan, "--new"], environment), timed([*submit, chain_pipeline(folder)], environment)
        timed([*submit, chain_pipeline(folder, DISPATCHES, BLINK)], environment)
        return *figures, dispatch(store)
    finally:
        for service in reversed(services):
            service.terminate()
            service.wait()


def peer(options, name, folder):
    script = folder / "peer.py"
    script.write_text(PEER)
    environment = {**os.environ, "HOME": str(folder), "RAY_TMPDIR": str(folder)}
    done = subprocess.run([options.peers, script, name, str(options.tasks), str(CHAIN), str(NAP)], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr[-4000:])
    fan, chain = map(float, done.stdout.split()[-2:])
    return fan, chain


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rallrec", default=str(ROOT / "target/release/rallrec"))
    parser.add_argument("--nats", default=os.environ.get("RALLREC_NATS_SERVER", str(ROOT / "target/nats/bin/nats-server")))
    parser.add_argument("--tasks", type=int, default=10000)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--peers", help="a Python with ray and distributed")
    parser.add_argument("--only", choices=["run", "cluster"], help="one row")
    options = parser.parse_args()
    rows, best = [], None
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as scratch:
        scratch = pathlib.Path(scratch)
        for name in ["ray", "dask"] if options.peers else []:
            (folder := scratch / name).mkdir()
            fan, chain = peer(options, name, folder)
            rows.append((name, fan, None, chain, None))
        for name, measure in [("run", embedded), ("cluster", cluster)]:
            if options.only in (None, name):
                (folder := scratch / name).mkdir()
                rows.append((f"rallrec {name}", *measure(options, folder)))
    peers = [row for row in rows if not row[0].startswith("rallrec")]
    fastest = min((row[1] for row in peers), default=None)
    print(f"{options.tasks} tasks, {options.slots} slots; load {os.getloadavg()[0]:.1f}")
    for name, fan, again, chain, waits in rows:
        ratio = f", {fastest / fan:.2f} x the fastest peer" if fastest and name.startswith("rallrec") else ""
        reused = f"; again {again:.2f} s" if again is not None else ""
        waited = f"; dispatch p50 {waits[0]} ms, p99 {waits[1]} ms" if waits else ""
        print(f"{name:16} fan {fan:7.2f} s = {options.tasks / fan:7.0f} tasks/s{ratio}{reused}; chain of {CHAIN} x {NAP} ms {chain:.2f} s{waited}")


if __name__ == "__main__":
    main()
