"""A small internet for tests: answers TLS, HTTP, raw TCP and UDP on the usual ports and says what it saw.

Standard library only, so that it runs in a bare image. Arguments: what it calls itself, a certificate with its key."""

import asyncio
import ssl
import sys
import tempfile
from typing import Any

WEB, TLS, RAW = (80, 8080), (443, 8443), (22, 5432)


def main() -> None:
    name, pem = sys.argv[1:3]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    asked: list[str] = []
    context.sni_callback = lambda _, server_name, __: asked.append(str(server_name))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Each request is answered with who answers and what was asked for."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                host = [line for line in head.split(b"\r\n") if line.lower().startswith(b"host:")]
                length = [
                    int(line.split(b":")[1]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"
                ]
                body = await reader.readexactly(length[0]) if length else b""
                if b"chunked" in head:
                    body = (await reader.readuntil(b"0\r\n\r\n")).replace(b"\r\n", b" ")
                text = f"reached {name} {b','.join(host).decode()} ".encode() + body
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
                await writer.drain()
                if b"connection: close" in head.lower():
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"reached {name}".encode())
        writer.close()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(f"reached {name}".encode(), addr)

    async def serve() -> None:
        for port in WEB:
            await asyncio.start_server(answer, port=port)
        for port in TLS:
            await asyncio.start_server(answer, port=port, ssl=context)
        for port in RAW:
            await asyncio.start_server(raw, port=port)
        await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("0.0.0.0", 53))
        print("ready", flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
