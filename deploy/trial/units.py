"""The systemd units: read by systemd's own checker in a bare Debian, and their commands started as they say, with their user,
environment and files, the root read-only but for the state folder."""
import dataclasses
from images import PATH, Image
from machine import Failed, call

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


def machine(base, program, deploy, environment, top):
    """A bare Debian with systemd, the program, the units, their user and the shipped configurations."""
    image = Image(top, [base])
    image.run("apt-get update && apt-get install --yes --no-install-recommends systemd ca-certificates")
    image.put(program, "usr/local/bin/rallrec", "755")
    for kind in ("coordinator", "worker"):
        image.put(deploy / f"etc/{kind}.toml", f"etc/rallrec/{kind}.toml")
        image.put(deploy / f"systemd/rallrec-{kind}.service", f"etc/systemd/system/rallrec-{kind}.service")
    image.put(deploy / "systemd/rallrec.conf", "usr/lib/sysusers.d/rallrec.conf")
    secrets = image.layer() / "etc/rallrec/environment"
    secrets.write_text("".join(f"{key}={value}\n" for key, value in environment.items()))
    secrets.chmod(0o600)
    image.run("systemd-sysusers")
    return image


def verify(image, names):
    """systemd's own check, which says nothing when all is well."""
    said = image.run(f"systemd-analyze verify {' '.join(names)}")
    if said.strip():
        raise Failed(f"systemd-analyze verify: {said}")


def service(image, unit, name, composition):
    """Runs a unit's check to its end, then starts its program: a service in the composition's network."""
    variables = dict(pair.split("=", 1) for pair in unit["Environment"].split())
    lines = image.find(unit["EnvironmentFile"].lstrip("-")).read_text().splitlines()
    variables |= dict(line.split("=", 1) for line in lines)
    user = next(row for row in image.users() if row[0] == unit["User"])
    # Beside the root, which is sealed.
    state = composition.work / "volumes" / name
    state.mkdir()
    call("chown", f"{user[2]}:{user[3]}", state)
    env = {"PATH": PATH, "HOME": user[5], "USER": user[0], "LOGNAME": user[0]} | variables
    image = dataclasses.replace(image, user=f"{user[2]}:{user[3]}", env=env)
    flags = ["--no-new-privs"] if unit["NoNewPrivileges"] == "yes" else []
    sealed = unit["ProtectSystem"] == "strict" and unit["PrivateTmp"] == "yes"
    binds = [(state, f"/var/lib/{unit['StateDirectory']}", "rw")]
    limit = {"stop_grace_period": f"{unit['TimeoutStopSec']}s"}
    start = lambda what: composition.run(name, limit, image, unit[what].split(), binds,
                                         sealed=sealed, flags=flags)
    check = start("ExecStartPre")
    if status := check.wait(60):
        raise Failed(f"{name}: {unit['ExecStartPre']}: status {status}\n{check.said()}")
    said = check.said()
    return start("ExecStart"), said
