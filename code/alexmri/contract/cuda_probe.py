"""Ask CUDA's driver library what it can do, and print the answer as JSON; run as a script.

A process of its own, so that neither a crash of the library nor the memory it takes reaches the
program, and so that LD_LIBRARY_PATH counts, which the loader reads when a process starts.
"""

import ctypes
import json

# <cuda.h>
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76


def main() -> None:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as missing:
        print(json.dumps({"cuda": None, "error": 0, "message": str(missing), "cards": []}))
        return
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    error = cuda.cuInit(0)
    answer = {
        "cuda": [version.value // 1000, version.value % 1000 // 10],
        "error": error,
        "message": _name(cuda, error) if error else "",
        "cards": [] if error else _cards(cuda),
    }
    print(json.dumps(answer))


def _name(cuda: ctypes.CDLL, error: int) -> str:
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(error, ctypes.byref(name))
    return f"{(name.value or b'CUDA error').decode()} ({error})"


def _cards(cuda: ctypes.CDLL) -> list[dict[str, object]]:
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return [_card(cuda, number) for number in range(count.value)]


def _card(cuda: ctypes.CDLL, number: int) -> dict[str, object]:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device)
    return {
        "name": name.value.decode(errors="replace"),
        "capability": [major.value, minor.value],
        "memory": memory.value,
    }


if __name__ == "__main__":
    main()
