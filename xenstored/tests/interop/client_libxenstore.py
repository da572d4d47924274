"""Xen's own C library against the daemon at $XENSTORED_PATH; prints "done" at the end."""

import ctypes
import errno
import os
import select
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_uint, c_uint32, c_ulong, c_void_p

lib = ctypes.CDLL("libxenstore.so.4", use_errno=True)
libc = ctypes.CDLL(None)
libc.free.argtypes = [c_void_p]


class Perm(ctypes.Structure):
    _fields_ = [("id", c_uint), ("perms", c_int)]


READ, WRITE = 1, 2
T = c_uint32
STRINGS = POINTER(c_char_p)
for name, result, *args in [
    ("xs_open", c_void_p, c_ulong),
    ("xs_close", None, c_void_p),
    ("xs_fileno", c_int, c_void_p),
    ("xs_read", c_void_p, c_void_p, T, c_char_p, POINTER(c_uint)),
    ("xs_write", c_bool, c_void_p, T, c_char_p, c_char_p, c_uint),
    ("xs_mkdir", c_bool, c_void_p, T, c_char_p),
    ("xs_rm", c_bool, c_void_p, T, c_char_p),
    ("xs_directory", STRINGS, c_void_p, T, c_char_p, POINTER(c_uint)),
    ("xs_get_permissions", POINTER(Perm), c_void_p, T, c_char_p, POINTER(c_uint)),
    ("xs_set_permissions", c_bool, c_void_p, T, c_char_p, POINTER(Perm), c_uint),
    ("xs_transaction_start", T, c_void_p),
    ("xs_transaction_end", c_bool, c_void_p, T, c_bool),
    ("xs_watch", c_bool, c_void_p, c_char_p, c_char_p),
    ("xs_unwatch", c_bool, c_void_p, c_char_p, c_char_p),
    ("xs_read_watch", STRINGS, c_void_p, POINTER(c_uint)),
    ("xs_check_watch", STRINGS, c_void_p),
    ("xs_is_domain_introduced", c_bool, c_void_p, c_uint),
    ("xs_get_domain_path", c_void_p, c_void_p, c_uint),
    ("xs_introduce_domain", c_bool, c_void_p, c_uint, c_ulong, c_uint),
    ("xs_control_command", c_void_p, c_void_p, c_char_p, c_void_p, c_uint),
]:
    function = getattr(lib, name)
    function.restype, function.argtypes = result, args

store, other = lib.xs_open(0), lib.xs_open(0)
assert store and other


def text(pointer, length=None):
    assert pointer, os.strerror(ctypes.get_errno())
    value = ctypes.string_at(pointer, length) if length is not None else ctypes.string_at(pointer)
    libc.free(pointer)
    return value


def read(path, tx=0, handle=store):
    length = c_uint()
    return text(lib.xs_read(handle, tx, path, byref(length)), length.value)


def write(path, value, tx=0, handle=store):
    assert lib.xs_write(handle, tx, path, value, len(value)), os.strerror(ctypes.get_errno())


def fails(number, result):
    assert not result and ctypes.get_errno() == number, ctypes.get_errno()


def event():
    number = c_uint()
    vector = lib.xs_read_watch(store, byref(number))
    return vector[0], vector[1]


write(b"/c/value", b"a\0b\xff")
assert read(b"/c/value") == b"a\0b\xff"
write(b"/c/empty", b"")
assert read(b"/c/empty") == b""
fails(errno.ENOENT, lib.xs_read(store, 0, b"/nope", byref(c_uint())))
fails(errno.EINVAL, lib.xs_read(store, 0, b"//", byref(c_uint())))
fails(errno.EINVAL, lib.xs_introduce_domain(store, 7, 1, 1))

# More names than fit into one reply: the library lists them in parts.
for n in range(3000):
    write(b"/c/big/child-%d" % n, b"")
number = c_uint()
names = lib.xs_directory(store, 0, b"/c/big", byref(number))
assert sorted(names[n] for n in range(number.value)) == sorted(b"child-%d" % n for n in range(3000))

perms = (Perm * 2)(Perm(0, READ | WRITE), Perm(7, READ))
assert lib.xs_set_permissions(store, 0, b"/c/value", perms, 2)
got = lib.xs_get_permissions(store, 0, b"/c/value", byref(number))
assert [(got[n].id, got[n].perms) for n in range(number.value)] == [(0, 3), (7, 1)]

tx = lib.xs_transaction_start(store)
write(b"/c/value", read(b"/c/value", tx) + b"!", tx)
write(b"/c/value", b"other", handle=other)
fails(errno.EAGAIN, lib.xs_transaction_end(store, tx, False))
tx = lib.xs_transaction_start(store)
write(b"/c/value", b"mine", tx)
assert read(b"/c/value", handle=other) == b"other"
assert lib.xs_transaction_end(store, tx, False) and read(b"/c/value", handle=other) == b"mine"
fails(errno.ENOENT, lib.xs_transaction_end(store, 99, False))

assert lib.xs_watch(store, b"/c/w", b"token")
assert event() == (b"/c/w", b"token")
fails(errno.EAGAIN, lib.xs_check_watch(store))
write(b"/c/w/x", b"1", handle=other)
assert select.select([lib.xs_fileno(store)], [], [], 60)[0]
assert event() == (b"/c/w/x", b"token")
assert lib.xs_unwatch(store, b"/c/w", b"token")
fails(errno.ENOENT, lib.xs_unwatch(store, b"/c/w", b"token"))

assert not lib.xs_is_domain_introduced(store, 7)
assert text(lib.xs_get_domain_path(store, 7)) == b"/local/domain/7"
assert text(lib.xs_control_command(store, b"check", None, 0)) == b"OK"
assert lib.xs_mkdir(store, 0, b"/c/dir") and lib.xs_rm(store, 0, b"/c")
fails(errno.ENOENT, lib.xs_read(store, 0, b"/c", byref(number)))
lib.xs_close(store)
lib.xs_close(other)
print("done")
