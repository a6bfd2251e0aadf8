"""The systemd units: read by systemd's own checker in a bare Debian, and their commands started as they say, with their user,
environment and files, the root read-only but for the state folder."""
from images import PATH, Image
from machine import Failed, call, copy, inside, reach

# What of a unit is carried out, and what is left to systemd's checker.
DONE = {"User", "Group", "StateDirectory", "Environment", "EnvironmentFile", "ExecStartPre", "ExecStart", "TimeoutStopSec",
        "KillSignal", "NoNewPrivileges", "ProtectSystem", "PrivateTmp"}
LEFT = {"Description", "Documentation", "Wants", "After", "Restart", "RestartSec", "ProtectHome", "RestrictSUIDSGID",
        "LockPersonality", "WantedBy"}


def read(path):
    """The settings of a unit."""
    lines = [line for line in path.read_text().splitlines() if line and line[0] not in "#["]
    unit = dict(line.split("=", 1) for line in lines)
    if unknown := set(unit) - DONE - LEFT:
        raise Failed(f"{path.name} has {unknown}, which is not known here")
    return unit


def machine(base, program, deploy, environment, target):
    """A bare Debian with systemd, the program, the units, their user and the shipped configurations."""
    copy(base, target)
    lent, binds = reach()
    env = {"PATH": PATH, "DEBIAN_FRONTEND": "noninteractive"} | lent
    install = "apt-get update && apt-get install --yes --no-install-recommends systemd ca-certificates"
    call(*inside(target, ["sh", "-c", install], env=env, binds=binds))
    call("install", "-m", "755", program, target / "usr/local/bin/rallrec")
    (target / "etc/rallrec").mkdir()
    for kind in ("coordinator", "worker"):
        call("install", "-m", "644", deploy / f"etc/{kind}.toml", target / "etc/rallrec")
        call("install", "-m", "644", deploy / f"systemd/rallrec-{kind}.service", target / "etc/systemd/system")
    call("install", "-m", "644", deploy / "systemd/rallrec.conf", target / "usr/lib/sysusers.d")
    (target / "etc/rallrec/environment").write_text("".join(f"{key}={value}\n" for key, value in environment.items()))
    (target / "etc/rallrec/environment").chmod(0o600)
    call(*inside(target, ["systemd-sysusers"], env=env))
    return target


def verify(root, names):
    """systemd's own check, which says nothing when all is well."""
    said = call(*inside(root, ["systemd-analyze", "verify", *names], env={"PATH": PATH}))
    if said.strip():
        raise Failed(f"systemd-analyze verify: {said}")


def service(root, unit, name, composition):
    """Runs a unit's check to its end, then starts its program: a service in the composition's network."""
    variables = dict(pair.split("=", 1) for pair in unit["Environment"].split())
    lines = (root / unit["EnvironmentFile"].lstrip("-/")).read_text().splitlines()
    variables |= dict(line.split("=", 1) for line in lines)
    user = next(line.split(":") for line in (root / "etc/passwd").read_text().splitlines() if line.startswith(f"{unit['User']}:"))
    own = composition.work / "containers" / name
    copy(root, own)
    # Beside the root, which is sealed.
    state = composition.work / "volumes" / name
    state.mkdir()
    call("chown", f"{user[2]}:{user[3]}", state)
    env = {"PATH": PATH, "HOME": user[5], "USER": user[0], "LOGNAME": user[0]} | variables
    image = Image(own, user=f"{user[2]}:{user[3]}", env=env)
    flags = ["--no-new-privs"] if unit["NoNewPrivileges"] == "yes" else []
    sealed = (True,) if unit["ProtectSystem"] == "strict" and unit["PrivateTmp"] == "yes" else ()
    binds = [(state, f"/var/lib/{unit['StateDirectory']}", "rw")]
    limit = {"stop_grace_period": f"{unit['TimeoutStopSec']}s"}
    start = lambda what: composition.run(name, limit, image, unit[what].split(), binds,
                                         sealed=sealed, flags=flags)
    check = start("ExecStartPre")
    if status := check.wait(60):
        raise Failed(f"{name}: {unit['ExecStartPre']}: status {status}\n{check.said()}")
    said = check.said()
    return start("ExecStart"), said
