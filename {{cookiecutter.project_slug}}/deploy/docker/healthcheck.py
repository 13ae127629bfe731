"""Exit with 0 if the service is ready: the image's HEALTHCHECK. Standard library only."""

import http.client
import os
import sys

TIMEOUT_SECONDS = 4


def main() -> int:
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("PORT", "8000")), timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        # `docker inspect` shows this output.
        sys.stdout.write(response.read().decode(errors="replace"))
    except OSError as error:
        sys.stdout.write(str(error))
        return 1
    finally:
        connection.close()
    return 0 if response.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
