"""Compiles CUDA C++ sources with NVRTC, with no GPU present.

usage: nvrtc.py WHEELS ARCHITECTURES SOURCE...

NVRTC and CUDA's headers come as wheels from the Python package index, at fixed versions, and are unpacked into the
folder WHEELS once. ARCHITECTURES are separated by commas, for example sm_80,sm_90a.
"""

import ctypes
import pathlib
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

PACKAGES = [
    "nvidia-cuda-nvrtc==13.5.37",
    "nvidia-cuda-runtime==13.5.37",
    "nvidia-cuda-crt==13.5.37",
    "nvidia-cuda-cccl==13.3.5.0.6",
]


def unpack(folder):
    """Downloads the packages unless they are there. The last step marks them as complete."""
    root, complete = folder / "nvidia" / "cu13", folder / "complete"
    if complete.exists() and complete.read_text() == "\n".join(PACKAGES):
        return root
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", "--dest", str(folder), *PACKAGES], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()
    complete.write_text("\n".join(PACKAGES))
    return root


def compile_source(library, options, path):
    """The compiler's messages when it fails, else None."""
    program = ctypes.c_void_p()
    text = pathlib.Path(path).read_bytes()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, path.encode(), 0, None, None) == 0
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    code = library.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() if code != 0 else None


def main():
    root = unpack(pathlib.Path(sys.argv[1]))
    # The compiler looks for its built-in functions in a library that it opens by name: have it open already.
    for builtins in (root / "lib").glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(next((root / "lib").glob("libnvrtc.so*"))))
    includes = [f"--include-path={root / 'include'}", f"--include-path={root / 'include' / 'cccl'}"]
    jobs = [(architecture, path) for architecture in sys.argv[2].split(",") for path in sys.argv[3:]]

    def run(job):
        architecture, path = job
        return job, compile_source(library, [f"--gpu-architecture={architecture}", *includes], path)

    failed = False
    with ThreadPoolExecutor() as pool:
        for (architecture, path), log in pool.map(run, jobs):
            failed |= log is not None
            if log is not None:
                print(f"{path} for {architecture}: {log[:2000]}")
    print(f"compiled {len(jobs)} programs", "with failures" if failed else "")
    sys.exit(failed)


main()
