"""The Dockerfile's stages, executed step by step in bare roots. It is read, not repeated: the two cannot drift apart,
and an instruction that is not known here is an error."""
import dataclasses, json, os, pathlib, re, shlex, shutil, subprocess
from machine import Failed, call, inside, reach

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclasses.dataclass
class Image:
    """A root, and how its program is started."""
    # Its own layer is in `top`/changes, over those of what it is made from.
    top: pathlib.Path
    below: list
    user: str = "0:0"
    folder: str = "/"
    env: dict = dataclasses.field(default_factory=lambda: {"PATH": PATH})
    entrypoint: list = dataclasses.field(default_factory=list)
    # What a build is lent: (from, to, "ro" or "rw").
    binds: list = dataclasses.field(default_factory=list)

    def layer(self):
        """Its own layer."""
        (self.top / "changes").mkdir(parents=True, exist_ok=True)
        return self.top / "changes"

    def layers(self):
        """All of them, the uppermost first."""
        return [self.layer(), *self.below]

    def find(self, path):
        """Where a file of it lies, or where it would."""
        places = [layer / path.lstrip("/") for layer in self.layers()]
        return next((place for place in places if place.exists()), places[0])

    def users(self):
        """The rows of its users' file."""
        return [line.split(":") for line in self.find("etc/passwd").read_text().splitlines()]

    def home(self):
        """The user's home, which an engine looks up as well."""
        return next((row[5] for row in self.users() if row[2] == self.user.split(":")[0]), "/")

    def put(self, source, path, mode="644"):
        """A file of the project's, of root's."""
        target = self.layer() / path.lstrip("/")
        call("install", "-D", "-m", mode, source, target)

    def run(self, line):
        """Executes a line of shell in it as root, with this machine's ways to the world."""
        lent, binds = reach()
        env = self.env | lent | {"HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
        return call(*inside(self.top, self.below, ["sh", "-c", line], env=env, binds=binds + self.binds, user=self.user,
                            folder=self.folder))


def instructions(text):
    """(instruction, value) of each, with lines joined that belong together."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    for line in joined.splitlines():
        word, value = line.strip().split(None, 1)
        yield word.upper(), value.strip()


def stages(text, arguments):
    """By name, (base, instructions), with the `ARG`s that stand before the first."""
    found, known, current = {}, {}, None
    for word, value in instructions(text):
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", value).groups()
            current = found[name] = (re.sub(r"\$\{(\w+)\}", lambda m: known[m[1]], base), [])
        elif current is None and word == "ARG":
            name, default = value.split("=", 1)
            known[name] = arguments.get(name, default)
        else:
            current[1].append((word, value))
    return found


def context(project, target):
    """What the build may see: what `.dockerignore` leaves, which begins with nothing and names what there is."""
    rules = [line for line in (project / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    if rules[0] != "*" or not all(rule.startswith("!") for rule in rules[1:]):
        raise Failed(".dockerignore has rules that are not known here")
    target.mkdir()
    for name in (rule[1:] for rule in rules[1:]):
        source = project / name
        if source.is_dir():
            shutil.copytree(source, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / name)
    return target


class Builder:
    """Builds images below a folder out of a base root."""

    def __init__(self, dockerfile, arguments, base, folder, sources):
        self.stages = stages(dockerfile.read_text(), arguments)
        self.arguments, self.base, self.folder, self.sources = arguments, base, folder, sources
        self.built = {}

    def build(self, name, prepare=lambda image: None):
        """Executes a stage, once. `prepare` makes its base out of the bare one."""
        if name not in self.built:
            image = Image(self.folder / name, [self.base])
            prepare(image)
            for word, value in self.stages[name][1]:
                self.step(image, word, value)
            self.built[name] = image
        return self.built[name]

    def step(self, image, word, value):
        if word == "RUN":
            self.execute(image, value)
        elif word == "COPY":
            *options, source, target = shlex.split(value)
            origin = self.sources / source
            if options:
                origin = self.built[re.fullmatch(r"--from=(\S+)", *options)[1]].find(source)
            target = image.layer() / (pathlib.PurePath(image.folder) / target).relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            call("cp", "-aT", "--no-preserve=ownership", origin, target)
        elif word == "USER":
            image.user = value
        elif word == "WORKDIR":
            image.folder = value
            if not image.find(value).exists():
                image.find(value).mkdir(parents=True)
        elif word == "ENV":
            image.env |= dict(pair.split("=", 1) for pair in shlex.split(value))
        elif word == "ENTRYPOINT":
            image.entrypoint = json.loads(value)
        elif word == "ARG":
            name, default = value.split("=", 1)
            image.env[name] = self.arguments.get(name, default.strip('"'))
        elif word not in ("VOLUME", "EXPOSE"):
            raise Failed(f"the Dockerfile has {word}, which is not known here")

    def execute(self, image, line):
        print(f"  RUN {line[:150]}", flush=True)
        while mount := re.match(r"--mount=type=cache,target=(\S+)\s+", line):
            cache = self.folder.parent / "caches" / mount[1].strip("/").replace("/", "-")
            cache.mkdir(parents=True, exist_ok=True)
            image.binds.append((cache, mount[1], "rw"))
            line = line[mount.end():]
        image.run(line)


def program(path, top):
    """In place of the build stage: what holds the program where that leaves it, stripped as there."""
    image = Image(top, [])
    call("strip", "-o", image.layer() / "rallrec", path)
    return image


def toolchain(image):
    """What `rust:…-bookworm` adds to a bare root: a C compiler, and this machine's own toolchain in its place there."""
    image.run("apt-get update && apt-get install --yes --no-install-recommends gcc g++ make libc6-dev binutils")
    cargo = pathlib.Path(call("rustup", "which", "cargo", stderr=subprocess.DEVNULL).strip())
    image.binds.append((cargo.parent.parent, "/usr/local/toolchain", "ro"))
    settings = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo")) / "config.toml"
    if settings.exists():
        image.binds.append((settings, "/usr/local/cargo/config.toml", "ro"))
    image.env |= {"CARGO_HOME": "/usr/local/cargo", "PATH": f"/usr/local/toolchain/bin:{PATH}"}


def checked(sources):
    """That the context is a whole workspace whose lock file stands: what `cargo build --locked` looks at first."""
    call("cargo", "metadata", "--locked", "--format-version", "1", "--manifest-path", sources / "Cargo.toml", cwd=sources)
