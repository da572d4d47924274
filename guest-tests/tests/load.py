# load.py serve ADDRESS PORT; load.py sink|source ADDRESS PORT MIB; load.py datagrams ADDRESS PORT COUNT LONGEST; load.py rounds ADDRESS PORT COUNT;
# load.py flood ADDRESS PORT SECONDS
# Bulk data whose every byte is known: the period is a prime, so that whatever is lost, doubled or out of place shows. Writes and
# datagrams have odd sizes. The end that receives compares; the client ends with status 0 if all was right. Rounds are one byte there and
# back by TCP; their mean in microseconds is printed. A flood is as many datagrams of 64 bytes as can be sent, whether anybody takes them or not.
import random, socket, struct, sys, time

PERIOD = 1000003
pattern = random.Random(77).randbytes(PERIOD) * 2
sizes = random.Random(78)


def part(at, n):
    out = b""
    while len(out) < n:
        start = (at + len(out)) % PERIOD
        out += pattern[start:start + min(n - len(out), PERIOD)]
    return out


def send(sock, total):
    at = 0
    while at < total:
        n = min(sizes.choice([7, 1449, 65535, 65537, 300001, 999983]), total - at)
        sock.sendall(part(at, n))
        at += n


def check(sock, total):
    at = 0
    while at < total:
        got = sock.recv(min(1 << 18, total - at))
        if not got:
            return f"ended after {at} bytes"
        if got != part(at, len(got)):
            return f"wrong bytes from {at} to {at + len(got)}"
        at += len(got)
    return "right"


def serve_stream(sock):
    kind, total = struct.unpack("!cQ", sock.recv(9, socket.MSG_WAITALL))
    if kind == b"s":
        send(sock, total)
    elif kind == b"p":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while byte := sock.recv(1):
            sock.sendall(byte)
    else:
        sock.sendall(check(sock, total).ljust(80).encode())


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(address, port):
    stream = socket.create_server((address, port), family=family(address))
    datagrams = socket.socket(family(address), socket.SOCK_DGRAM)
    datagrams.bind((address, port))
    import threading

    def echo():
        while True:
            data, who = datagrams.recvfrom(65536)
            datagrams.sendto(data[::-1], who)

    threading.Thread(target=echo, daemon=True).start()
    print("ready", flush=True)
    while True:
        with stream.accept()[0] as sock:
            serve_stream(sock)


def client(what, address, port, amount, longest):
    if what == "datagrams":
        return datagrams(address, port, amount, longest)
    if what == "flood":
        return flood(address, port, amount)
    if what == "rounds":
        return rounds(address, port, amount)
    with socket.create_connection((address, port)) as sock:
        sock.sendall(struct.pack("!cQ", b"s" if what == "source" else b"r", amount << 20))
        if what == "source":
            return check(sock, amount << 20)
        send(sock, amount << 20)
        return sock.recv(80, socket.MSG_WAITALL).decode().strip()


# Each comes back reversed. A lost one is sent again: UDP may lose, but never change.
def datagrams(address, port, count, longest):
    sock = socket.socket(family(address), socket.SOCK_DGRAM)
    sock.connect((address, port))
    sock.settimeout(5)
    lost = 0
    for n in range(count):
        data = struct.pack("!I", n) + part(n * 7919, sizes.randint(0, longest - 4))
        while True:
            sock.send(data)
            try:
                got = sock.recv(65536)
                while got[-4:] != data[3::-1]:
                    got = sock.recv(65536)
                break
            except TimeoutError:
                lost += 1
                if lost > 20:
                    return f"no answer to datagram {n} of {len(data)} bytes"
        if got != data[::-1]:
            return f"datagram {n} of {len(data)} bytes came back as another"
    return "right"


def rounds(address, port, count):
    with socket.create_connection((address, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(struct.pack("!cQ", b"p", 0))
        begun = time.monotonic()
        for n in range(count):
            sock.sendall(bytes([n % 256]))
            if sock.recv(1) != bytes([n % 256]):
                return f"round {n} came back wrong"
        print(f"{(time.monotonic() - begun) / count * 1e6:.1f} us")
    return "right"


def flood(address, port, seconds):
    sock = socket.socket(family(address), socket.SOCK_DGRAM)
    sent, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for n in range(100):
            try:
                sent += sock.sendto(pattern[n:n + 64], (address, port)) == 64
            except OSError:
                pass
    print(f"{sent} datagrams sent")
    return "right"


if sys.argv[1] == "serve":
    serve(sys.argv[2], int(sys.argv[3]))
numbers = [int(word) for word in sys.argv[3:]] + [0]
verdict = client(sys.argv[1], sys.argv[2], *numbers[:3])
print(verdict)
sys.exit(verdict != "right")
