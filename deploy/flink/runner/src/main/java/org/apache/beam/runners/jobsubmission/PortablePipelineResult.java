package org.apache.beam.runners.jobsubmission;

import org.apache.beam.model.jobmanagement.v1.JobApi.MetricResults;
import org.apache.beam.sdk.PipelineResult;

/** What a run of {@code FlinkPipelineRunner} gives. */
public interface PortablePipelineResult extends PipelineResult {
  MetricResults portableMetrics();
}
