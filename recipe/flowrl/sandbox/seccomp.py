"""The system calls that a program in the sandbox has, as a seccomp filter (a classic BPF program); no others.

The list names what CPython, its standard library and NumPy need to compute, to read and write files and pipes, to wait
and to run threads. What isn't named fails with ENOSYS, as on a kernel that hasn't got it, so that a call of a kernel to
come is refused too. Threads are allowed (programs run their recursion in a thread with a large stack), processes are
not: with one process, its limits of memory and CPU time are those of the whole program. Not named, since they take
memory of the kernel's that no limit counts or reach what is the host's: a file's mode, times and extended attributes,
locks and leases, sockets (but pairs of them, which asyncio makes), inotify, timers, message queues, io_uring, keys,
shared memory.
"""

import platform
import struct

# name, number on x86_64, on aarch64 (-: it hasn't got it), from the kernel's tables.
_TABLE = """
read 0 63 | write 1 64 | openat 257 56 | close 3 57 | newfstatat 262 79 | fstat 5 80 | statx 332 291 | lseek 8 62
mmap 9 222 | mprotect 10 226 | munmap 11 215 | brk 12 214 | futex 202 98 | rt_sigaction 13 134
rt_sigprocmask 14 135 | rt_sigreturn 15 139 | open 2 - | stat 4 - | lstat 6 - | access 21 - | faccessat 269 48
faccessat2 439 439 | pread64 17 67 | pwrite64 18 68 | readv 19 65 | writev 20 66 | preadv 295 69 | pwritev 296 70
preadv2 327 286 | pwritev2 328 287 | pipe 22 - | pipe2 293 59 | dup 32 23 | dup2 33 - | dup3 292 24 | fsync 74 82
fdatasync 75 83 | truncate 76 45 | ftruncate 77 46 | fallocate 285 47 | fadvise64 221 223 | sendfile 40 71
copy_file_range 326 285 | getdents 78 - | getdents64 217 61 | getcwd 79 17 | chdir 80 49 | fchdir 81 50
rename 82 - | renameat 264 38 | renameat2 316 276 | mkdir 83 - | mkdirat 258 34 | rmdir 84 - | creat 85 -
link 86 - | linkat 265 37 | unlink 87 - | unlinkat 263 35 | symlink 88 - | symlinkat 266 36 | readlink 89 -
readlinkat 267 78 | umask 95 166 | statfs 137 43 | fstatfs 138 44 | close_range 436 436 | mremap 25 216
madvise 28 233 | mincore 27 232 | msync 26 227 | membarrier 324 283 | rseq 334 293 | set_robust_list 273 99
set_tid_address 218 96 | arch_prctl 158 - | getpid 39 172 | gettid 186 178 | getppid 110 173 | getpgrp 111 -
getpgid 121 155 | getsid 124 156 | getuid 102 174 | geteuid 107 175 | getgid 104 176 | getegid 108 177
getgroups 115 158 | getresuid 118 148 | getresgid 120 150 | getrlimit 97 163 | setrlimit 160 164 | prlimit64 302 261
getrusage 98 165 | times 100 153 | sysinfo 99 179 | uname 63 160 | getrandom 318 278 | getcpu 309 168
sched_yield 24 124 | sched_getaffinity 204 123 | sched_getparam 143 121 | sched_getscheduler 145 120
sched_get_priority_max 146 125 | sched_get_priority_min 147 126 | time 201 - | gettimeofday 96 169
clock_gettime 228 113 | clock_getres 229 114 | clock_nanosleep 230 115 | nanosleep 35 101 | getitimer 36 102
setitimer 38 103 | alarm 37 - | pause 34 - | rt_sigpending 127 136 | rt_sigtimedwait 128 137 | rt_sigsuspend 130 133
sigaltstack 131 132 | restart_syscall 219 128 | execve 59 221 | wait4 61 260 | waitid 247 95 | select 23 -
pselect6 270 72 | poll 7 - | ppoll 271 73 | epoll_create 213 - | epoll_create1 291 20 | epoll_ctl 233 21
epoll_wait 232 - | epoll_pwait 281 22 | epoll_pwait2 441 441 | eventfd 284 - | eventfd2 290 19 | sendto 44 206
recvfrom 45 207 | shutdown 48 210 | getsockname 51 204 | getpeername 52 205 | getsockopt 55 209 | fcntl 72 25
ioctl 16 29 | prctl 157 167 | clone 56 220 | kill 62 129 | tkill 200 130 | tgkill 234 131 | exit 60 93
exit_group 231 94 | socketpair 53 199
"""
_ROWS = [row.split() for line in _TABLE.strip().splitlines() for row in line.split("|")]
_ALLOWED = {name: (x86_64, aarch64) for name, x86_64, aarch64 in _ROWS}

_TERMINAL_OR_PIPE = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # kind, size, bytes to read, blocking, at exec
_DESCRIPTOR = (0, 1, 2, 3, 4, 1030)  # copies and flags; not locks, leases, notices, the size of a pipe
_OWN_NAME_OR_PARENT = (1, 15, 16)  # the sandbox's own init asks for the end with its parent
_ONLY_WITH: dict[str, tuple[int, tuple[int, ...]]] = {
    "ioctl": (1, _TERMINAL_OR_PIPE),
    "fcntl": (1, _DESCRIPTOR),
    "prctl": (0, _OWN_NAME_OR_PARENT),
    "prlimit64": (0, (0,)),  # its own; not those of the sandbox's init
    "socketpair": (0, (1,)),  # AF_UNIX
}
"""Call: the argument that is looked at, and the values that it may have."""
_SIGKILL = 9
_SIGNALLING = {"kill": 1, "tkill": 1, "tgkill": 2}
_EXITING = ("exit", "exit_group")
KILLED_STATUS = 128 + _SIGKILL
"""A program can't end with this exit status, nor kill itself: it is the kernel's, when it runs out of memory."""

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32_BIT = 0x40000000  # the same calls under other numbers
_CLONE_THREAD = 0x00010000
_EPERM, _ENOSYS = 1, 38

_LOAD, _AND, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_KILL, _ERROR, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; arguments have 8 bytes each

_Instruction = tuple[int, int, int, int]


def supported() -> bool:
    """Whether there is a filter for this machine's processor."""
    return platform.machine() in _ARCHITECTURES


def compiled() -> bytes:
    """The filter for this machine's processor, as ``bwrap --seccomp`` reads it: an array of ``struct sock_filter``."""
    column, audit = _ARCHITECTURES[platform.machine()]
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    program += [(_GREATER_EQUAL, 0, 1, _X32_BIT), (_RETURN, 0, 0, _ERROR | _ENOSYS)]
    for name, numbers in _ALLOWED.items():
        if numbers[column] != "-":
            rule = _rule(name)
            program += [(_EQUAL, 0, len(rule), int(numbers[column])), *rule]
    program.append((_RETURN, 0, 0, _ERROR | _ENOSYS))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _rule(name: str) -> list[_Instruction]:
    """What is done once the call is known to be ``name``; ends with a return."""
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERROR | _EPERM)
    if name in _ONLY_WITH:
        argument, values = _ONLY_WITH[name]
        matches = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
        return [_load(argument), *matches, refuse, allow]
    if name in _SIGNALLING:
        return [_load(_SIGNALLING[name]), (_EQUAL, 0, 1, _SIGKILL), refuse, allow]
    if name in _EXITING:
        return [_load(0), (_AND, 0, 0, 0xFF), (_EQUAL, 0, 1, KILLED_STATUS), (_RETURN, 0, 0, _KILL), allow]
    if name == "clone":
        return [_load(0), (_ANY_BIT, 1, 0, _CLONE_THREAD), refuse, allow]
    return [allow]


def _load(argument: int) -> _Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)  # the lower half, on machines that are little-endian
