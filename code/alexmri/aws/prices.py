"""What an instance of an endpoint costs by the hour, as AWS's public price list says."""

import json
from decimal import Decimal

from alexmri.aws.client import Aws, boto_errors, make_client

PAGE = "https://aws.amazon.com/sagemaker/ai/pricing/"
# The list is served from few regions, for all of them.
REGION = "us-east-1"


def hourly_usd(aws: Aws, instance: str) -> Decimal | None:
    """Return US dollars per hour on demand in the region of `aws`.

    None where the list cannot be read or names no single price: a price is no reason to fail.
    Its format: https://docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/price-changes.html
    """
    wanted = {"regionCode": aws.region, "instanceName": instance}
    filters = [
        {"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()
    ]
    try:
        client = make_client(
            aws.session, "pricing", region=REGION, attempts=1, connect_seconds=3, read_seconds=5
        )
        found = client.get_products(ServiceCode="AmazonSageMaker", Filters=filters)
        prices = {
            Decimal(dimension["pricePerUnit"]["USD"])
            for product in map(json.loads, found["PriceList"])
            # For example USE1-Host:ml.m5.large; training and notebooks have other prices.
            if product["product"]["attributes"]["usagetype"].endswith(f"Host:{instance}")
            for offer in product["terms"]["OnDemand"].values()
            for dimension in offer["priceDimensions"].values()
        }
    except boto_errors():
        return None
    except (ArithmeticError, LookupError, TypeError, ValueError):  # the list has another form
        return None
    return prices.pop() if len(prices) == 1 else None
