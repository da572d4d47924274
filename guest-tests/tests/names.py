# names.py ADDRESS: a name server that has this address for every name.
import socket, sys

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
address = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(sys.argv[1])
while True:
    query, who = server.recvfrom(512)
    end = query.index(0, 12) + 5
    # Of the kinds of addresses it has the old one only.
    count, answer = (b"\0\1", address) if query[end - 4:end - 2] == b"\0\1" else (b"\0\0", b"")
    server.sendto(query[:2] + b"\x81\x80\0\1" + count + bytes(4) + query[12:end] + answer, who)
