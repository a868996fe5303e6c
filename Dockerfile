# Builds the program, then keeps nothing but it.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
# .dockerignore names what this takes.
COPY . .
# Stripped: an image is copied more often than its stack traces are read.
ENV CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=symbols
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin ebbtide \
    && cp target/release/ebbtide /usr/local/bin/ebbtide

FROM debian:bookworm-slim
# The roots of trust for https nodes and managed Postgres.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/ebbtide --create-home ebbtide
COPY --from=build /usr/local/bin/ebbtide /usr/local/bin/ebbtide
USER ebbtide
WORKDIR /var/lib/ebbtide
# REST; health, readiness and metrics.
EXPOSE 8080 6060
ENTRYPOINT ["ebbtide"]
CMD ["--help"]
