"""The client library pyxs against the daemon at $XENSTORED_PATH; prints "done" at the end."""

import errno
import threading

import pyxs
from pyxs.exceptions import PyXSError

pyxs.Client.SU = True  # It would ask /proc/xen.


def refused(number, call, *args):
    try:
        call(*args)
    except PyXSError as error:
        assert error.args[0] == number, error
    else:
        raise AssertionError("no error")


with pyxs.Client() as store, pyxs.Client() as other:
    store[b"/py/a"] = b"1"
    store.mkdir(b"/py/b")
    assert store[b"/py/a"] == b"1" and store[b"/py/b"] == b""
    assert sorted(store.list(b"/py")) == [b"a", b"b"]
    assert store.exists(b"/py") and not store.exists(b"/nope")
    refused(errno.ENOENT, store.read, b"/nope")
    assert store.read(b"/nope", b"default") == b"default"
    store.set_perms(b"/py/a", [b"b0", b"r7"])
    assert store.get_perms(b"/py/a") == [b"b0", b"r7"]
    assert store.get_domain_path(7) == b"/local/domain/7"
    assert not store.is_domain_introduced(7)
    refused(errno.EINVAL, store.introduce_domain, 7, 1, 1)  # No descriptors come along.

    store.transaction()
    store[b"/py/a"] = b"2"
    assert other[b"/py/a"] == b"1"
    assert store.commit() and other[b"/py/a"] == b"2"
    store.transaction()
    store[b"/py/a"] = store[b"/py/a"] + b"x"
    other[b"/py/a"] = b"3"
    assert not store.commit() and store[b"/py/a"] == b"3"
    store.transaction()
    store[b"/py/a"] = b"4"
    store.rollback()
    assert store[b"/py/a"] == b"3"

    with store.monitor() as monitor:
        monitor.watch(b"/py/b", b"token")
        events = monitor.wait()
        assert next(events) == (b"/py/b", b"token")
        other[b"/py/b/c"] = b""
        assert next(events) == (b"/py/b/c", b"token")
        monitor.unwatch(b"/py/b", b"token")

    # Many threads over one connection: replies are told apart by their request ids.
    def work(n):
        for value in range(200):
            path = b"/py/thread/%d" % n
            store[path] = b"%d" % value
            assert store[path] == b"%d" % value

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(store[b"/py/thread/%d" % n] == b"199" for n in range(8))
    del store[b"/py"]
    assert not store.exists(b"/py")
print("done")
