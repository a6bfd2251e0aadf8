"""What this machine lends: commands that must end well, roots to run programs in, its apt's mirror and its proxies.

Every program runs in namespaces of its own for mounts and processes, so that nothing of it stays when it ends. Nothing
is ever mounted in the script's own view of the files, which may therefore be removed without looking.
"""
import ctypes, os, pathlib, shlex, shutil, subprocess

# Variables that say how the world is reached; a build gets them, a service does not.
REACH = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL",
         "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT")
# This machine's certificates, where builds find them.
CERTIFICATES = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
LENT = "/run/lent-certificates.crt"

# Lays the root's layers over each other, mounts what a container has and what is bound, then becomes the program: process
# 1 of its namespace, as there.
ENTER = """
top=$1 layers=$2 name=$3; shift 3
root=$top/root
mkdir -p "$top/changes" "$top/work" "$root"
mount -t overlay overlay -o "lowerdir=$layers,upperdir=$top/changes,workdir=$top/work" "$root"
echo "$name" > /proc/sys/kernel/hostname
while [ "$1" != -- ]; do
  case $1 in
    sealed) mount --rbind "$root" "$root"; mount -o remount,bind,ro "$root"; mount -t tmpfs -o mode=1777 tmp "$root/tmp"; shift ;;
    bind)
      [ ! -d "$2" ] || mkdir -p "$root$3"
      [ -e "$root$3" ] || { mkdir -p "$(dirname "$root$3")"; : > "$root$3"; }
      mount --rbind "$2" "$root$3"
      [ "$4" = rw ] || mount -o remount,bind,ro "$root$3"
      shift 4 ;;
  esac
done
shift
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom; do
  : > "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -m 1777 "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"; ln -s /proc/self/fd/1 "$root/dev/stdout"; ln -s /proc/self/fd/2 "$root/dev/stderr"
[ -z "$GO" ] || read -r _
unset GO
exec chroot "$root" "$@"
"""


class Failed(Exception):
    """A step that did not end well. Its text says which, and what was said."""


def call(*command, **more):
    """Runs a command that must end well; gives what it printed."""
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "text": True, **more}
    done = subprocess.run([str(part) for part in command], **more)
    if done.returncode:
        said = "\n".join(done.stdout.splitlines()[-30:])
        shown = shlex.join(str(part) for part in command if part != ENTER)
        raise Failed(f"{shown}: status {done.returncode}\n{said}")
    return done.stdout


def inside(top, layers, argv, *, name="build", user="0:0", folder="/", env=(), binds=(), sealed=False, flags=(), net=False):
    """The command that runs `argv` in a root of these layers, the uppermost first. What it changes is kept in
    `top`/changes. `binds`: (from, to, "ro" or "rw"). `sealed`: only what is bound can be written. `net`: in a network of
    its own, and only after a line on stdin."""
    uid, gid = user.split(":")
    steps = []
    for source, target, mode in binds:
        steps += ["bind", str(source), target, mode]
    steps += ["sealed"] if sealed else []
    identity = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", *flags]
    values = [f"{key}={value}" for key, value in dict(env).items()]
    program = ["env", "-i", "-C", folder, *values, *argv]
    apart = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", *(["--net"] if net else [])]
    root = [str(top), ":".join(str(layer) for layer in layers), name]
    return ["env", f"GO={1 if net else ''}", *apart, "sh", "-ec", ENTER, "sh", *root, *steps, "--", *identity, *program]


def reach():
    """Variables and bindings with which a build reaches what this machine reaches."""
    env = {key: os.environ[key] for key in REACH if key in os.environ}
    binds = [(pathlib.Path("/etc/resolv.conf").resolve(), "/etc/resolv.conf", "ro")]
    if CERTIFICATES.exists():
        binds.append((CERTIFICATES, LENT, "ro"))
        env |= {"PIP_CERT": LENT, "SSL_CERT_FILE": LENT, "CARGO_HTTP_CAINFO": LENT}
    return env, binds


def bare(suite, target, mirror):
    """A bare Debian of this suite, from the mirrors that this machine's own apt is set up with, or from `mirror`."""
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(CODENAME)"
    asked = call("apt-get", "indextargets", "--format", fields, "Identifier: Packages")
    known = [line.split() for line in asked.splitlines()]
    sources = [row[:3] for row in known if len(row) == 4 and row[3].startswith(suite) and row[2] == "main"]
    sources = [[mirror, suite, "main"]] if mirror else sources
    first = next((row[0] for row in sources if row[1] == suite), None)
    if first is None:
        raise Failed(f"this machine's apt knows no Debian {suite}: run `apt-get update`, or name a mirror with --mirror URL")
    settings = call("apt-config", "dump", "--format", '%F "%v";%n', "Acquire::http", "Acquire::https")
    proxy = [line.split('"')[1] for line in settings.splitlines() if line.startswith("Acquire::http::Proxy ")]
    env = {**os.environ, **({"http_proxy": proxy[0]} if proxy else {})}
    partial = target.with_name(target.name + ".new")
    shutil.rmtree(partial, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", suite, str(partial), first]
    call("unshare", "--mount", "--pid", "--fork", "--kill-child", *command, env=env)
    lists = "".join(f"deb {uri} {release} {component}\n" for uri, release, component in sources)
    (partial / "etc/apt/sources.list").write_text(lists)
    (partial / "etc/apt/apt.conf.d/90lent").write_text(settings)
    # As the images on Docker's hub: nothing that was downloaded is kept.
    (partial / "etc/apt/apt.conf.d/docker-clean").write_text('Binary::apt::APT::Keep-Downloaded-Packages "false";\n')
    partial.rename(target)


def own_network():
    """Leaves this machine's network for one of its own, which ends with the script."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
        raise Failed(f"no network of its own: {os.strerror(ctypes.get_errno())}; run it as root")
    call("ip", "link", "set", "lo", "up")
