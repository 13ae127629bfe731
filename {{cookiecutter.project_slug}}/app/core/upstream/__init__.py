"""Calls to other services, with time limits, retries, a circuit breaker and a cache that may return stale values.

    class RateClient:
        def __init__(self, http: LazyHttpClient) -> None:
            self._upstream = UpstreamClient("rate service", "https://rates.example.com", http, UpstreamOptions())
            self._cache = StaleCache[str, Rates](fresh_seconds=60, stale_seconds=3600, size=100)

        async def read(self, base: str) -> Rates:
            cached = await self._cache.get(base, lambda: self._upstream.get("/latest", Rates, params={"base": base}))
            return cached.value

Create one client per process, in the lifespan of a feature. An error that the route does not handle becomes a problem
document with a status of 502, 503 or 504.
"""
