"""Keeps OpenMP's waiting threads from spinning, which makes everything ten times slower where a core is busy.

torch spreads each small product over all cores, and its threads then spin while they wait for the next. If something
else runs on one of the cores, that thread's share comes late each time and the others spin meanwhile: measured on two
cores, one of them busy, a picture took 59 s instead of 5. Threads that sleep cost next to nothing.
"""

import os
import sys
import threading

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # with any of these the user has chosen


def let_waiting_threads_sleep() -> None:
    """Set OpenMP's wait policy to passive for this process, unless the environment says how threads wait.

    OpenMP reads the environment once, when torch is imported. If that was before, GNU's OpenMP, with which torch comes
    on Linux, has no call that changes the policy; but it spins for microseconds only while there are more threads than
    cores (`gomp_throttled_spin_count_var`). So a thread that sleeps for ever keeps more threads than there are cores.
    They take no part in any work, and numbers stay the same to the last bit.
    """
    if any(name in os.environ for name in SETTINGS):
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    for library in _loaded_gnu_openmp() if "torch" in sys.modules else []:
        _outnumber_the_cores(library)


def _loaded_gnu_openmp() -> list[str]:
    """The paths of GNU's OpenMP libraries in this process: none on other systems than Linux."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            mapped = {line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line}
    except OSError:
        return []
    return sorted(path for path in mapped if os.path.basename(path).startswith("libgomp"))


def _outnumber_the_cores(library: str) -> None:
    """Start one more thread of an OpenMP than there are cores, and let them sleep until the process ends.

    One more, because with as many the threads started here may be the last to spin.
    """
    import ctypes

    openmp, nothing_to_do = ctypes.CDLL(library), ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
    started = threading.Event()

    def hold() -> None:
        openmp.GOMP_parallel(nothing_to_do, None, openmp.omp_get_num_procs() + 1, 0)  # each thread calls free(NULL)
        started.set()
        threading.Event().wait()  # a team lives as long as the thread that it belongs to

    threading.Thread(target=hold, name="codebrush-openmp", daemon=True).start()
    started.wait()
