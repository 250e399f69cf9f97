"""The same route with everything ours adds: limits, request ids, metrics, access log."""

import sys
from pathlib import Path

from bazaruto import config, logs, web
from bazaruto.metrics import Metrics
from bazaruto.server import serve

if __name__ == "__main__":
    settings = config.load({"BAZARUTO_HOME": str(Path(sys.argv[2]) / "bench")})
    logs.configure(settings, "bench")
    app = web.create_app("bench", settings, Metrics())

    @app.get("/v1/ping/<number:int>")
    def ping(number: int) -> dict[str, int]:
        return {"number": number}

    sys.exit(serve(app, host="127.0.0.1", port=int(sys.argv[1]), limits=settings.server, probe_paths=()))
