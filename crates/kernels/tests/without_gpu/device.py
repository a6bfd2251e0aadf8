"""Runs one launch of an emitted kernel on a CUDA device: the same protocol as the host's program (shim/cuda.h).

usage: device.py LIBNVRTC INCLUDES SYMBOL SOURCE SHARED_BYTES < launch > buffers

INCLUDES are folders, separated by colons.
"""

import ctypes
import struct
import sys

ATTRIBUTE_MAX_DYNAMIC_SHARED = 8


def check(code, what):
    if code != 0:
        sys.exit(f"{what}: CUDA error {code}")


def compiled(nvrtc_path, includes, source_path):
    """The source as PTX for the oldest architecture that the kernels are for."""
    nvrtc = ctypes.CDLL(nvrtc_path)
    program = ctypes.c_void_p()
    with open(source_path, "rb") as file:
        text = file.read()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"kernel.cu", 0, None, None), "create")
    options = [b"--gpu-architecture=compute_80", *[f"--include-path={path}".encode() for path in includes]]
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    if code != 0:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        sys.exit(log.value.decode())
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx


def main():
    library, includes, symbol, source, shared = sys.argv[1:]
    ptx = compiled(library, includes.split(":"), source)
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, module, function = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    check(cuda.cuInit(0), "init")
    check(cuda.cuDeviceGet(ctypes.byref(device), 0), "device")
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "context")
    check(cuda.cuCtxSetCurrent(context), "context")
    check(cuda.cuModuleLoadData(ctypes.byref(module), ptx), "module")
    check(cuda.cuModuleGetFunction(ctypes.byref(function), module, symbol.encode()), symbol)
    check(cuda.cuFuncSetAttribute(function, ATTRIBUTE_MAX_DYNAMIC_SHARED, int(shared)), "shared memory")

    read = sys.stdin.buffer.read
    _, x, y, z, units, buffers, total = struct.unpack("7I", read(28))
    memory, sizes, values = [], [], []
    for index in range(total):
        (size,) = struct.unpack("Q", read(8))
        data = ctypes.create_string_buffer(read(size), max(size, 1))
        if index < buffers:
            pointer = ctypes.c_uint64()
            check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(max(size, 1))), "memory")
            check(cuda.cuMemcpyHtoD_v2(pointer, data, ctypes.c_size_t(size)), "copy")
            memory.append(pointer)
            sizes.append(size)
            values.append(pointer)
        else:
            values.append(data)
    arguments = (ctypes.c_void_p * total)(*[ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values])
    check(cuda.cuLaunchKernel(function, x, y, z, units, 1, 1, int(shared), None, arguments, None), "launch")
    check(cuda.cuCtxSynchronize(), symbol)
    for pointer, size in zip(memory, sizes):
        data = ctypes.create_string_buffer(max(size, 1))
        check(cuda.cuMemcpyDtoH_v2(data, pointer, ctypes.c_size_t(size)), "copy back")
        sys.stdout.buffer.write(data.raw[:size])


main()
