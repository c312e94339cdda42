"""A server that breaks one rule: `hostile.py BEHAVIOUR [HOW MUCH]`. Up to that it answers like any small server.

Each behaviour is a function below; its docstring says which rule it breaks."""

import json
import os
import signal
import sys
import threading
from typing import Any

out = sys.stdout.buffer


def write(data: bytes) -> None:
    out.write(data)
    out.flush()


def send(**members: Any) -> None:
    write(json.dumps({"jsonrpc": "2.0", **members}).encode() + b"\n")


def read() -> dict[str, Any] | None:
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def result(request: dict[str, Any], text: str = "") -> dict[str, Any]:
    """What a proper server answers to what it knows."""
    match request["method"]:
        case "initialize":
            hello = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {"listChanged": True}}}
            return {**hello, "serverInfo": {"name": "hostile", "version": "1"}}
        case "tools/list":
            return {"tools": [{"name": "poke", "inputSchema": {"type": "object"}}]}
        case _:
            return {"content": [{"type": "text", "text": text or "poked"}]}


def answer(request: dict[str, Any]) -> None:
    if request["method"] in ("initialize", "tools/list", "tools/call", "ping"):
        send(id=request["id"], result=result(request))
    else:
        send(id=request["id"], error={"code": -32601, "message": "Method not found"})


def serve(on_call: Any = None, on_each: Any = None, on_list: Any = None, on_hello: Any = None) -> None:
    """Answer until stdin ends; `on_each` runs before each answer, the others take the answers of their method."""
    special = {"tools/call": on_call, "tools/list": on_list, "initialize": on_hello}
    while (request := read()) is not None:
        if "id" not in request or "method" not in request:
            continue
        if on_each is not None:
            on_each(request)
        (special.get(request["method"]) or answer)(request)


def exits_at_once() -> None:
    """Ends before the handshake, saying why on stderr."""
    print("cannot open /data/memory.json", file=sys.stderr, flush=True)
    sys.exit(7)


def hangs_silently() -> None:
    """Reads everything, answers nothing, and stays until it is told to go."""
    while sys.stdin.readline():
        pass


def makes_noise() -> None:
    """Prints lines that are no messages before and between its messages."""
    write(b"Welcome to my server!\n\n{oops\n[1,2\n\x1b[31mred\x1b[0m\n")
    serve(on_each=lambda request: write(b'debug: got a request\nnull\n42\n"text"\n[]\n{}\n'))


def partial_line_at_end() -> None:
    """Dies in the middle of an answer."""

    def die(request: dict[str, Any]) -> None:
        write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result(request)}).encode()[:-5])
        os._exit(0)

    serve(die)


def endless_line() -> None:
    """Writes 40 MB without a line break."""

    def flood(request: dict[str, Any]) -> None:
        for _ in range(40):
            write(b"x" * 1_000_000)

    serve(flood)


def invalid_utf8() -> None:
    """Puts bytes that are not UTF-8 where the answer should be, then the answer to nothing."""
    serve(lambda request: write(b'{"jsonrpc":"2.0","id":%d,"result":{"x":"\xff\xfe"}}\n' % request["id"]))


def stderr_flood() -> None:
    """Writes 20 MB on stderr at each call before it answers."""

    def flood(request: dict[str, Any]) -> None:
        for _ in range(20):
            sys.stderr.buffer.write(b"x\x1b" * 40 + b"\n" + b"y" * 999_919)
        sys.stderr.buffer.flush()
        send(id=request["id"], result=result(request))

    serve(flood)


def answers_twice() -> None:
    """Answers each call twice, differently."""

    def twice(request: dict[str, Any]) -> None:
        send(id=request["id"], result=result(request, "first"))
        send(id=request["id"], result=result(request, "second"))

    serve(twice)


def wrong_ids() -> None:
    """Answers requests that nobody made, with ids of every kind, before the right answer."""

    def wrong(request: dict[str, Any]) -> None:
        id = request["id"]
        for other in (id + 1, id + 1000, -id, str(id), float(id), None, [id], {"id": id}, True):
            send(id=other, result=result(request, "wrong"))
        write(b'{"jsonrpc":"2.0","id":%b,"result":{}}\n' % (b"9" * 5000))
        write(b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%b}}\n' % (b"9" * 5000))
        send(id=id, result=result(request, "right"))

    serve(wrong)


def only_wrong_id() -> None:
    """Answers another request than the one it was asked."""
    serve(lambda request: send(id=request["id"] + 1, result=result(request, "stolen")))


def dies_mid_call() -> None:
    """Is killed while it works on a call."""
    serve(lambda request: os.kill(os.getpid(), signal.SIGSEGV))


def asks_questions() -> None:
    """Asks the client things it was never offered, and waits for each answer."""

    def ask(request: dict[str, Any]) -> None:
        answers = []
        questions = ("sampling/createMessage", "roots/list", "elicitation/create", "ping", "tools/call", "x/y")
        for number, method in enumerate(questions):
            send(id=f"q{number}", method=method, params={})
            answer = read()
            while answer is not None and answer.get("id") != f"q{number}":
                answer = read()
            answers.append("result" if answer and "result" in answer else (answer or {}).get("error", {}).get("code"))
        send(id=request["id"], result=result(request, json.dumps(answers)))

    serve(ask)


def wrong_revision() -> None:
    """Speaks a revision nobody knows."""
    serve(on_hello=lambda hello: send(id=hello["id"], result={**result(hello), "protocolVersion": "1999-01-01"}))


def bad_initialize() -> None:
    """Answers initialize with something else."""
    serve(on_hello=lambda hello: send(id=hello["id"], result=["surprise"]))


def refuses_initialize() -> None:
    """Answers initialize with an error."""
    serve(on_hello=lambda hello: send(id=hello["id"], error={"code": -32000, "message": "no licence"}))


def closes_stdout() -> None:
    """Closes its stdout at a call but goes on living, and ignores being asked to leave."""

    def close(request: dict[str, Any]) -> None:
        os.close(1)
        while sys.stdin.readline():
            pass
        threading.Event().wait()

    serve(close)


def ignores_sigterm() -> None:
    """Neither the end of stdin nor SIGTERM makes it go."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve()
    threading.Event().wait()


def forks_a_child() -> None:
    """Starts a child that ignores SIGTERM, keeps the pipes open and outlives its parent."""
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        threading.Event().wait()
    serve()


def forks_and_crashes() -> None:
    """Dies at a call and leaves a child behind that holds the pipes open."""

    def die(request: dict[str, Any]) -> None:
        if os.fork() == 0:
            threading.Event().wait()
        os._exit(5)

    serve(die)


def bad_items() -> None:
    """Lists tools of which only one is any good."""
    good = {"name": "poke", "inputSchema": {"type": "object"}}
    bad: list[Any] = [1, None, "x", [], {}, {"name": 5}, {"name": ""}, {"name": None}, good, {"title": "no name"}]
    serve(on_list=lambda request: send(id=request["id"], result={"tools": [*bad, {"name": "poke", "title": "again"}]}))


def bad_list() -> None:
    """Lists its tools as something that is no list."""
    serve(on_list=lambda request: send(id=request["id"], result={"tools": {"poke": {}}}))


def endless_pages() -> None:
    """Never comes to the end of its list."""

    def page(request: dict[str, Any]) -> None:
        send(id=request["id"], result={**result(request), "nextCursor": "again"})

    serve(on_list=page)


def too_many_items() -> None:
    """Lists 20,000 tools on one page."""
    tools = [{"name": f"t{number}", "inputSchema": {}} for number in range(20_000)]
    serve(on_list=lambda request: send(id=request["id"], result={"tools": tools}))


def progress_of_others() -> None:
    """Sends progress for calls that are not its own to report on."""

    def report(request: dict[str, Any]) -> None:
        for token in (request["id"] - 1, request["id"] + 1, 0, -1, str(request["id"]), None, [], {}):
            send(method="notifications/progress", params={"progressToken": token, "progress": 1})
        send(method="notifications/progress", params={"progress": 1})
        send(method="notifications/progress", params=[request["id"]])
        send(id=request["id"], result=result(request))

    serve(report)


def pings_and_never_reads() -> None:
    """Once called, sends pings without end and reads none of the answers."""

    def flood(request: dict[str, Any]) -> None:
        ping = b'{"jsonrpc":"2.0","id":"%b","method":"ping"}\n' % (b"p" * 1000)
        for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 20_000):
            write(ping)
        send(id=request["id"], result=result(request, "flooded"))
        threading.Event().wait()

    serve(flood)


def notes_without_end() -> None:
    """Once called, sends log messages without end."""
    note = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}\n'

    def flood(request: dict[str, Any]) -> None:
        while True:
            write(note * 500)

    serve(flood)


def breaks_its_next_list() -> None:
    """Lists well once; at each call it announces a change, and the new list is one that decoders choke on."""
    bombs = iter(
        [
            b'{"name":"bomb","inputSchema":{"x-mcp-header":1,"maximum":1e999}}',
            b'{"name":"bomb","x":%b1%b}' % (b"[" * 900, b"]" * 900),
            b'{"name":"bomb","x":%b1%b}' % (b"[" * 100_000, b"]" * 100_000),
            b'{"name":"bo\\ud800mb"}',
            b'{"name":"bomb","inputSchema":{"x-mcp-header":"a"}}',
            b"[]]",
        ]
    )
    lists = 0

    def listed(request: dict[str, Any]) -> None:
        nonlocal lists
        lists += 1
        if lists == 1:
            send(id=request["id"], result=result(request))
        else:
            poke = b'{"name":"poke","inputSchema":{"type":"object"}}'  # as before: a changed tool is kept back
            write(b'{"jsonrpc":"2.0","id":%d,"result":{"tools":[%b,%b]}}\n' % (request["id"], poke, next(bombs)))

    def changed(request: dict[str, Any]) -> None:
        send(method="notifications/tools/list_changed")
        answer(request)

    serve(on_call=changed, on_list=listed)


def interleaves() -> None:
    """Writes two messages at once, so that their pieces alternate."""

    def mix(request: dict[str, Any]) -> None:
        one = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result(request, "one")}).encode() + b"\n"
        two = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"x": "y"}}).encode() + b"\n"
        for place in range(0, max(len(one), len(two)), 7):
            write(one[place : place + 7] + two[place : place + 7])

    serve(mix)


def closes_stdin() -> None:
    """Answers one call and then reads nothing more."""

    def close(request: dict[str, Any]) -> None:
        answer(request)
        os.close(0)
        threading.Event().wait()

    serve(close)


def answers_late() -> None:
    """Answers the first call only when the second is asked, before that one's own answer."""
    first: list[dict[str, Any]] = []

    def late(request: dict[str, Any]) -> None:
        if not first:
            first.append(request)
            return
        send(id=first[0]["id"], result=result(request, "too late"))
        send(id=request["id"], result=result(request, "in time"))

    serve(late)


def floods_progress() -> None:
    """Sends 100,000 progress messages of 1 kB for each call before the answer."""

    def flood(request: dict[str, Any]) -> None:
        token = request["params"].get("_meta", {}).get("progressToken")
        for number in range(int(sys.argv[2]) if len(sys.argv) > 2 else 20_000):
            params = {"progressToken": token, "progress": number, "message": "x" * 1000}
            send(method="notifications/progress", params=params)
        send(id=request["id"], result=result(request))

    serve(flood)


def floods_questions() -> None:
    """Asks 20,000 questions at a call and waits for no answer."""

    def flood(request: dict[str, Any]) -> None:
        for number in range(20_000):
            send(id=f"q{number}", method="sampling/createMessage", params={"messages": []})
        send(id="q" * 100_000, method="ping")
        send(id=request["id"], result=result(request))

    serve(flood)


def batch_bomb() -> None:
    """Writes a batch of ten million empty messages before the answer."""

    def bomb(request: dict[str, Any]) -> None:
        write(b"[" + b"{}," * 10_000_000 + b"{}]\n")
        answer(request)

    serve(bomb)


def list_bomb() -> None:
    """Lists ten million numbers as its tools."""

    def bomb(request: dict[str, Any]) -> None:
        write(b'{"jsonrpc":"2.0","id":%d,"result":{"tools":[%b1]}}\n' % (request["id"], b"1," * 10_000_000))

    serve(on_list=bomb)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
