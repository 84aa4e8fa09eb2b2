"""A web server of our own that misbehaves as it is told."""

import hashlib
import http.server
import threading

HTML = b"<html>log in</html>"


class Server:
    """Serves files by name; `script[name]` holds what to do instead, request by request: a status,
    other bytes, "zeros" of its size, "cut", "from the middle", or "html"."""

    def __init__(self):
        self.files, self.script, self.asked, self.has_ranges = {}, {}, [], True
        methods = {"do_GET": lambda request: self.answer(request), "log_message": lambda *_: None}
        handler = type("Handler", (http.server.BaseHTTPRequestHandler,), methods)
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def times(self, name):
        return [asked for asked, _ in self.asked].count(name)

    def answer(self, request):
        name = request.path.removesuffix("/content").split("/")[-1]
        wanted = request.headers.get("Range")
        self.asked.append((name, wanted))
        step = self.script[name].pop(0) if self.script.get(name) else None
        body = self.files.get(name)
        if isinstance(step, bytes) or step in ("html", "zeros"):
            body = {"html": HTML, "zeros": bytes(len(body))}.get(step, step)
        start = int(wanted[6:-1]) if wanted and self.has_ranges else 0
        status = step if isinstance(step, int) else 404 if body is None else 206 if start else 200
        if status < 300 and start and start >= len(body):
            status = 416
        body = b"" if status >= 300 else body
        total, start = len(body), start + 5 * (step == "from the middle")
        request.send_response(status)
        request.send_header("Retry-After", "0")
        request.send_header("Content-Length", str(max(0, total - start)))
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if step == "html":
            request.send_header("Content-Type", "text/html; charset=utf-8")
        request.end_headers()
        # Cut: half of what is left, then the line goes dead.
        rest = body[start:]
        request.wfile.write(rest[: len(rest) // 2] if step == "cut" else rest)
        request.close_connection = step == "cut"


def md5(body):
    return hashlib.md5(body).hexdigest()
