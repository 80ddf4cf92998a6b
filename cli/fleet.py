"""`cfgdiff bench fleet`: what a large set of pictures takes on many workers."""

from typing import Any

import click

from .bench import POSITIVE, counts

NUMBER, POSITIVE_NUMBER = click.FloatRange(min=0), click.FloatRange(min=0, min_open=True)


@click.command()
@click.option("--rate", required=True, type=POSITIVE_NUMBER, help="Pictures that a worker draws per second.")
@click.option("--pictures", default=10_000_000, show_default=True, type=POSITIVE, help="In the set.")
@click.option("--shard-size", default=10_000, show_default=True, type=POSITIVE, help="Pictures in a shard.")
@click.option("--workers", default="1,10,100,1000", show_default=True, metavar="W[,W...]",
              type=counts(1_000_000, "1,10,1000"), help="A row of the table for each.")  # fmt: skip
@click.option(
    "--picture-bytes", default=5300.0, show_default=True, type=POSITIVE_NUMBER, help="Of a picture in a shard."
)
@click.option("--start", default=20.0, show_default=True, type=NUMBER, help="Seconds until a worker draws.")
@click.option("--failures", default=0.01, show_default=True, type=NUMBER, help="Of each worker per hour of work.")
@click.option("--replaced", default=120.0, show_default=True, type=NUMBER,
              help="Seconds from a failure until another worker starts.")  # fmt: skip
@click.option("--requests", default=2, show_default=True, type=POSITIVE, help="For each shard, one after the other.")
@click.option("--latency", default=0.1, show_default=True, type=NUMBER, help="Of a request in seconds.")
@click.option("--bandwidth", default=100.0, show_default=True, type=POSITIVE_NUMBER, help="Of a worker, in MB/s.")
@click.option("--store-bandwidth", default=10_000.0, show_default=True, type=POSITIVE_NUMBER,
              help="Of the store, for all workers, in MB/s.")  # fmt: skip
@click.option("--store-requests", default=3500.0, show_default=True, type=POSITIVE_NUMBER, help="Per second, for all.")
@click.option("--price-hour", default=0.10, show_default=True, type=NUMBER, help="Of a worker's hour.")
@click.option("--price-requests", default=0.005, show_default=True, type=NUMBER, help="Of 1,000 requests.")
@click.option("--price-month", default=0.023, show_default=True, type=NUMBER, help="Of a gigabyte for a month.")
@click.option("--runs", default=20, show_default=True, type=POSITIVE, help="Simulations for each row.")
def fleet(workers: tuple[int, ...], price_hour: float, price_requests: float, price_month: float, runs: int,
          bandwidth: float, store_bandwidth: float, **given: Any) -> None:  # fmt: skip
    """Simulate how long many workers take for a set of shards, what it costs, and what stops them from being faster.

    Defaults of the store and all prices are assumptions: put your own in their place. The rate is what `cfgdiff-run
    --shard-size` reaches on one of your workers.
    """
    from cfgdiff.benchmarks.fleet import Fleet, Prices, fleet_report

    simulated = Fleet(workers=1, bandwidth=1e6 * bandwidth, store_bandwidth=1e6 * store_bandwidth, **given)
    click.echo(fleet_report(simulated, workers, runs, Prices(price_hour, price_requests, price_month)))
