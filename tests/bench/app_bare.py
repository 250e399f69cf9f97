"""The floor: one route on bottle and waitress, with as many threads as ours has."""

import logging
import sys

import bottle
import waitress

app = bottle.Bottle()


@app.get("/v1/ping/<number:int>")
def ping(number: int) -> dict[str, int]:
    return {"number": number}


if __name__ == "__main__":
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # else it prints a line for each queued request
    waitress.serve(app, host="127.0.0.1", port=int(sys.argv[1]), threads=16, _quiet=True)
