package org.apache.beam.runners.jobsubmission;

import org.apache.beam.model.pipeline.v1.RunnerApi.Pipeline;
import org.apache.beam.runners.fnexecution.provisioning.JobInfo;

/** What {@code FlinkPipelineRunner} implements. */
public interface PortablePipelineRunner {
  PortablePipelineResult run(Pipeline pipeline, JobInfo jobInfo) throws Exception;
}
