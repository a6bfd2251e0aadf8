"""The compose file's services as processes: each in a root of its own, its own network, process and mount namespaces, with
exactly the command, environment, configurations and volumes that stand there. A key that is not known here is an error."""
import dataclasses, pathlib, re, shutil, signal, socket, subprocess, threading, time
from images import Image
from machine import Failed, call, inside

KEYS = {"image", "build", "restart", "environment", "depends_on", "command", "entrypoint", "configs", "volumes", "ports",
        "stop_grace_period"}
# What an engine waits between SIGTERM and SIGKILL, if nothing else is said.
GRACE = 10
BRIDGE, NETWORK = "172.30.0.1", "172.30.0"


@dataclasses.dataclass
class Service:
    """A process in a container's place."""
    name: str
    spec: dict
    image: Image
    address: str
    log: pathlib.Path
    process: subprocess.Popen = None

    def pid(self):
        """Of the program itself: the only child of what holds its namespaces."""
        parent = self.process.pid
        children = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return int(children[0]) if children else None

    def said(self):
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def wait(self, seconds):
        """Its exit status, or an error when it has not ended by then."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} has not ended after {seconds} s\n{self.said()}") from None

    def stop(self):
        """As an engine: SIGTERM, and it must end within its grace. Gives its status and the seconds."""
        grace = float(self.spec.get("stop_grace_period", f"{GRACE}s").removesuffix("s"))
        began, pid = time.monotonic(), self.pid()
        if pid is None:
            raise Failed(f"{self.name} has ended before it was told to\n{self.said()}")
        subprocess.run(["kill", "-TERM", str(pid)], check=True)
        return self.wait(grace), time.monotonic() - began


class Composition:
    """The whole file, brought up piece by piece."""

    def __init__(self, spec, folder, work, image_of):
        self.spec, self.folder, self.work, self.image_of = spec, folder, work, image_of
        self.services = {}
        names = list(spec["services"])
        self.addresses = {name: f"{NETWORK}.{10 + number}" for number, name in enumerate(names)}
        for name, service in spec["services"].items():
            unknown = set(service) - KEYS
            if unknown or "$" in str(service.get("command", "")):
                raise Failed(f"compose.yaml: {name} has {unknown or 'a $'}, which is not known here")
        (work / "volumes").mkdir(exist_ok=True)
        bridge()

    def start(self, name):
        """Starts a service, once what it depends on has come as far as it should."""
        if name in self.services:
            return
        spec = self.spec["services"][name]
        depends = spec.get("depends_on", [])
        for other in depends:
            self.start(other)
            if isinstance(depends, dict) and depends[other]["condition"] == "service_completed_successfully":
                status = self.services[other].wait(120)
                if status:
                    raise Failed(f"{other}: status {status}\n{self.services[other].said()}")
        image = self.image_of(name, spec)
        binds = [self.config(entry) for entry in spec.get("configs", [])]
        binds += [self.volume(entry, image) for entry in spec.get("volumes", [])]
        env = image.env | spec.get("environment", {}) | {"HOSTNAME": name, "HOME": image.home()}
        entry = spec.get("entrypoint", image.entrypoint)
        image = dataclasses.replace(image, env=env)
        self.services[name] = self.run(name, spec, image, [*entry, *spec.get("command", [])], binds)
        for port in spec.get("ports", []):
            host, outer, inner = port.split(":")
            forward((host, int(outer)), (self.addresses[name], int(inner)))

    def run(self, name, spec, image, argv, binds, **more):
        """Starts a program over an image, joined to the network under its name."""
        address = self.addresses.setdefault(name, f"{NETWORK}.{10 + len(self.addresses)}")
        hosts = "127.0.0.1 localhost\n" + "".join(f"{to} {known}\n" for known, to in self.addresses.items())
        own = Image(self.work / "containers" / name, image.layers())
        (own.layer() / "etc").mkdir(exist_ok=True)
        (own.layer() / "etc/hosts").write_text(hosts)
        log = self.work / f"{name}.log"
        command = inside(own.top, own.below, argv, name=name, user=image.user, folder=image.folder, env=image.env, binds=binds,
                         net=True, **more)
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT)
        join(process.pid, address)
        process.stdin.write(b"go\n")
        process.stdin.close()
        return Service(name, spec, image, address, log, process)

    def config(self, entry):
        known = self.spec["configs"][entry["source"]]
        return (self.folder / known["file"]).resolve(), entry["target"], "ro"

    def volume(self, entry, image):
        """A named volume: at first what the image has there, with its owner."""
        name, target = entry.split(":")
        if name not in self.spec["volumes"]:
            raise Failed(f"compose.yaml names no volume {name}")
        folder = self.work / "volumes" / name
        if not folder.exists():
            original = image.find(target)
            call("cp", "-a", original, folder) if original.exists() else folder.mkdir()
        return folder, target, "rw"

    def alive(self):
        """That whatever should run still does."""
        for service in self.services.values():
            if service.process.poll() not in (None, 0):
                raise Failed(f"{service.name} ended with {service.process.returncode}\n{service.said()}")


def bridge():
    """The network that the services share, in the script's own."""
    call("ip", "link", "add", "bridge", "type", "bridge")
    call("ip", "address", "add", f"{BRIDGE}/24", "dev", "bridge")
    call("ip", "link", "set", "bridge", "up")


def join(pid, address):
    """Gives a process that has just left our network a wire to the bridge."""
    until = time.monotonic() + 30
    ours = pathlib.Path("/proc/self/ns/net").readlink()
    while (theirs := pathlib.Path(f"/proc/{pid}/ns/net")).readlink() == ours:
        if time.monotonic() > until:
            raise Failed(f"process {pid} has no network of its own")
        time.sleep(0.01)
    wire = f"v{address.rsplit('.', 1)[1]}"
    call("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", pid)
    call("ip", "link", "set", wire, "master", "bridge", "up")
    for step in (("address", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up"), ("link", "set", "lo", "up"),
                 ("route", "add", "default", "via", BRIDGE)):
        call("nsenter", f"--net={theirs}", "ip", *step)


def forward(here, there):
    """A published port: what comes in here goes there."""
    def pump(source, sink):
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def serve(listener):
        while True:
            client, _ = listener.accept()
            try:
                server = socket.create_connection(there, 5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, args=(socket.create_server(here),), daemon=True).start()
