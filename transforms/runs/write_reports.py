"""Write unit reports in a pipeline; apart from `reports`, which the launcher needs before Beam."""

from __future__ import annotations

from dataclasses import dataclass

import apache_beam as beam

from transforms.runs.reports import FILES, publish_group, to_line


@dataclass
class WriteReports(beam.PTransform):  # type: ignore[misc]
    """`UnitReport`s and `Note`s -> the numbers of `FILES` files below `prefix`, each written once, whole.

    Through `transforms.storage`: Beam's own sink spends half a minute of every process on looking for credentials
    where there are none, and is not held to the same behaviour when the network fails.
    """

    prefix: str

    def expand(self, reports: beam.PCollection) -> beam.PCollection:
        """Group by file, so that a bundle that is tried again writes the same, and write."""
        empty = reports.pipeline | "Files" >> beam.Create([(number, "") for number in range(FILES)])
        lines = reports | "To JSON" >> beam.Map(to_line)
        return (
            (empty, lines)
            | beam.Flatten()
            | beam.GroupByKey()
            | "Publish" >> beam.Map(publish_group, prefix=self.prefix)
        )
