#!/usr/bin/env python3
"""Tries what is in `deploy/` on a machine without a container engine: as root, with debootstrap, iproute2 and Python's yaml.

    python3 deploy/trial [--program target/release/rallrec] [--nats FILE] [--pipeline FILE]... [--home FOLDER] [--work FOLDER]

- The Dockerfile's stages are executed in bare Debian roots. `--program` takes the place of the build stage, which else
  builds with this machine's own toolchain (half an hour on two cores).
- compose.yaml's services are started from these roots. The image of NATS is another's: its program is `--nats`.
- Pipelines are submitted through the published ports; the leader is stopped, and a worker in the middle of its work.
- The systemd units are checked by systemd, and their commands started beside the services.

What it finds is on stdout, and its status is 0 if all of it was well. Everything runs in namespaces that end with it,
and below a folder that it removes (`--work`: one that is kept, with the bare root for the next time).
"""
import argparse, importlib.util, json, os, pathlib, shutil, signal, subprocess, sys, tempfile, time

if (lacking := [name for name in ("debootstrap", "ip", "unshare", "nsenter", "setpriv", "strip") if not shutil.which(name)]) \
        or not importlib.util.find_spec("yaml") or os.geteuid() != 0:
    sys.exit(f"lacking: {lacking}, root or Python's yaml; on Debian: apt-get install debootstrap iproute2 python3-yaml binutils")

import yaml
import units
from images import Builder, Image, checked, context, program, stages, toolchain
from machine import Failed, bare, call, own_network
from services import Composition

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
PROJECT = DEPLOY.parent
COORDINATORS = "http://127.0.0.1:7070,http://127.0.0.1:7071"


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Trial:
    """The steps, in their order."""

    def __init__(self, arguments, work):
        self.arguments, self.work = arguments, work
        self.composition = None

    def images(self):
        """Bare root, then every stage of the Dockerfile."""
        dockerfile = DEPLOY / "Dockerfile"
        bases = {name: base for name, (base, _) in stages(dockerfile.read_text(), {}).items()}
        suites = {base.split(":")[1].removesuffix("-slim") for name, base in bases.items() if name != "build"}
        if len(suites) != 1 or not all(base.startswith("debian:") for name, base in bases.items() if name != "build"):
            raise Failed(f"the images' bases are not one Debian: {bases}")
        self.base = self.work / "base"
        if not self.base.exists():
            say(f"a bare Debian {(suite := suites.pop())}")
            bare(suite, self.base, self.arguments.mirror)
        for left in ("images", "containers", "volumes", "context"):
            shutil.rmtree(self.work / left, ignore_errors=True)
        (self.work / "images").mkdir()
        sources = context(PROJECT, self.work / "context")
        checked(sources)
        say("the build's context is a whole workspace, and its lock file stands")
        builder = Builder(dockerfile, {}, self.base, self.work / "images", sources)
        say("stage build" + (f": {self.arguments.program} in its place" if self.arguments.program else ""))
        if self.arguments.program:
            builder.built["build"] = program(self.arguments.program, self.work / "images/build")
        else:
            builder.build("build", toolchain)
        self.program = builder.built["build"].find("rallrec")
        for name in ("rallrec", "trial-s3"):
            say(f"stage {name}")
            builder.build(name)
        nats = Image(self.work / "images/nats", [self.base], entrypoint=["nats-server"])
        nats.put(self.arguments.nats, "usr/local/bin/nats-server", "755")
        self.built = builder.built | {"nats": nats}
        self.spec = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
        environment = self.spec["services"]["coordinator"]["environment"]
        say("a machine with systemd, its units and their configurations")
        self.machine = units.machine(self.base, self.program, DEPLOY, environment, self.work / "images/machine")

    def image_of(self, name, spec):
        if target := spec.get("build", {}).get("target"):
            return self.built[target]
        if spec["image"] == "rallrec:trial-s3":
            return self.built["trial-s3"]
        if spec["image"].startswith("nats:"):
            return self.built["nats"]
        raise Failed(f"{name}: nothing stands for the image {spec['image']}")

    def ask(self, *words, status=0):
        """A command of a person on this machine, who knows the published ports."""
        env = {"PATH": os.environ["PATH"], "RALLREC_COORDINATOR": COORDINATORS, "HOME": str(self.work)}
        command = [self.program, *words, "--home", self.arguments.home or self.work / "home"]
        return call(*command, env=env, cwd=PROJECT, stderr=subprocess.STDOUT)

    def until(self, what, told):
        """Waits until a command's answer satisfies."""
        limit, answer = time.monotonic() + 60, ""
        while time.monotonic() < limit:
            self.composition.alive()
            try:
                answer = self.ask(*what)
                if told(answer):
                    return answer
            except Failed as failed:
                answer = str(failed)
            time.sleep(0.2)
        raise Failed(f"{what} does not come about: {answer}")

    def ready(self, workers):
        self.until(["workers"], lambda answer: answer.count(" ready") == workers)

    def services(self):
        """compose up, pipelines, and a leader that is stopped."""
        own_network()
        spec = self.spec
        self.composition = Composition(spec, DEPLOY, self.work, self.image_of)
        for name in spec["services"]:
            self.composition.start(name)
        self.ready(2)
        say("all services of compose.yaml run; two workers are ready")
        uids = {name: pathlib.Path(f"/proc/{one.pid()}/status").read_text().split("Uid:")[1].split()[0]
                for name, one in self.composition.services.items() if one.process.poll() is None}
        if {uid for name, uid in uids.items() if name != "nats"} != {"10001"}:
            raise Failed(f"users: {uids}")
        say("every program of ours runs as 10001")
        for pipeline in self.arguments.pipeline or ["pipelines/fan.yaml"]:
            say(f"{pipeline}: {self.ask('submit', pipeline, '--wait').splitlines()[-1]}")
        leader = "coordinator"
        status, seconds = self.composition.services[leader].stop()
        say(f"the leader was told to stop: status {status} after {seconds:.1f} s")
        if status:
            raise Failed(self.composition.services[leader].said())
        said = self.ask("submit", "pipelines/fan.yaml", "--set", "tasks=20", "--wait").splitlines()[-1]
        say(f"the standby leads: {said}")

    def units(self):
        """The systemd units, beside the services."""
        names = [f"rallrec-{kind}.service" for kind in ("coordinator", "worker")]
        units.verify(self.machine, names)
        say("systemd-analyze verify finds nothing in the units")
        running = []
        for name in names:
            unit = units.read(self.machine.find(f"etc/systemd/system/{name}"))
            service, checked = units.service(self.machine, unit, name.removesuffix(".service"), self.composition)
            say(f"{unit['ExecStartPre']}: {len(checked.splitlines())} lines, status 0")
            running.append(service)
        self.ready(3)
        say("the units' commands run as they say, one coordinator and one worker more")
        for service in running:
            status, seconds = service.stop()
            say(f"{service.name}: SIGTERM, status {status} after {seconds:.1f} s")
            if status:
                raise Failed(service.said())
        self.ready(2)

    def stops(self):
        """A worker is stopped while it works, then everything."""
        services = self.composition.services
        run = self.ask("submit", "pipelines/fan.yaml", "--set", "tasks=12", "--set", "milliseconds=2000").split()[-1]
        self.until(["workers"], lambda answer: answer.count("1 of 1") == 2)
        status, seconds = services["worker-1"].stop()
        say(f"worker-1, in the middle of a task: SIGTERM, status {status} after {seconds:.1f} s")
        ended = self.ask("watch", run, "--json").splitlines()
        events = [json.loads(line) for line in ended if line.startswith("{")]
        failed = [event for event in events if event["event"] == "task_failed"]
        if status or failed or events[-1].get("outcome") != "done":
            raise Failed(f"{run}: {failed}, {events[-1]}\n{services['worker-1'].said()}")
        say("the run is done, and no task was lost or failed")
        for name in reversed(services):
            if services[name].process.poll() is None:
                status, seconds = services[name].stop()
                say(f"{name}: SIGTERM, status {status} after {seconds:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=pathlib.Path)
    parser.add_argument("--nats", type=pathlib.Path,
                        default=os.environ.get("RALLREC_NATS_SERVER", PROJECT / "target/nats/bin/nats-server"))
    parser.add_argument("--pipeline", action="append")
    parser.add_argument("--home", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--mirror")
    arguments = parser.parse_args()
    if "RALLREC_TRIAL" not in os.environ:
        # Namespaces of its own, which end with it and take along whatever it has started or mounted.
        alone = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        own = tempfile.mkdtemp(prefix="rallrec-trial-") if arguments.work is None else None
        work = [] if own is None else ["--work", own]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            ended = subprocess.run([*alone, sys.executable, "-B", *sys.argv, *work], env={**os.environ, "RALLREC_TRIAL": "1"})
        finally:
            if own:
                shutil.rmtree(own)
        sys.exit(ended.returncode)
    arguments.work.mkdir(parents=True, exist_ok=True)
    trial = Trial(arguments, arguments.work.resolve())
    try:
        for step in (trial.images, trial.services, trial.units, trial.stops):
            step()
    except Failed as failed:
        services = trial.composition.services.values() if trial.composition else []
        logs = "\n".join(f"--- {service.name}\n{service.said()}" for service in services)
        sys.exit(f"{failed}\n{logs}")
    say("all of it was well")


main()
