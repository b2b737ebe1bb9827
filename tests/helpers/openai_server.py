"""A server for the tests of OpenAICompletions, and one call of it."""

import asyncio
import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tts_decode.completions.completion import CompletionRequest
from tts_decode.completions.openai import OpenAICompletions

PROMPT = "Question?\n"


class Server:
    """`answer(body) -> (status, headers, payload)` decides; `bodies` and `headers` are what came."""

    def __init__(self):
        self.bodies, self.headers, self.sockets, self.answer = [], [], [], None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append(body)
                server.headers.append((self.path, dict(self.headers)))
                server.sockets.append(self.connection)
                status, headers, payload = server.answer(body)
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(data))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                seconds = float(headers.get("X-Pause", 0))  # between one byte and the next
                for part in (data[i : i + 1] for i in range(len(data))) if seconds else [data]:
                    self.wfile.write(part)
                    time.sleep(seconds)

            def handle(self):
                with suppress(ConnectionError):  # the client is gone
                    super().handle()

            def log_message(self, *arguments):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def choice(text, finish_reason, usage=None, **fields):
    answer = {"choices": [{"index": 0, "text": text, "finish_reason": finish_reason, **fields}]}
    return 200, {}, answer | ({} if usage is None else {"usage": {"completion_tokens": usage}})


def complete(server, request=None, answer=None, **options):
    """One completion of the server."""
    if answer is not None:
        server.answer = lambda body: answer
    engine = OpenAICompletions(server.url, "tiny", **{"backoff": 0.001} | options)
    return asyncio.run(engine(request or CompletionRequest(PROMPT, 16, stop=(";",))))
