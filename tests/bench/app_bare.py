"""The floor: one route on bottle and waitress, with as many threads as ours has."""

import sys

import bottle
import waitress

app = bottle.Bottle()


@app.get("/v1/ping/<number:int>")
def ping(number: int) -> dict[str, int]:
    return {"number": number}


if __name__ == "__main__":
    waitress.serve(app, host="127.0.0.1", port=int(sys.argv[1]), threads=16, _quiet=True)
