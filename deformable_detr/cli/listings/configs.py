"""`deformable-detr configs`: the configs of the package."""

from deformable_detr.cli.terminal import echo, wrapped


def configs() -> None:
    """List the configs of the package.

    One line each: the name for --config, what it is, and its AP on COCO val2017 as published by
    others, if there is one.

    Examples:
        deformable-detr configs
    """
    from deformable_detr.config.catalog import list_configs  # pydantic takes time to import

    listed = list_configs()
    width = max(len(one.name) for one in listed)
    for one in listed:
        ap = f", AP {one.published_ap}" if one.published_ap else ""
        echo(wrapped(f"{one.name:{width}}  {one.title}{ap}", indent=width + 2))
