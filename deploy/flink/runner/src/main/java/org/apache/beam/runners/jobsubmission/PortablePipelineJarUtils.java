package org.apache.beam.runners.jobsubmission;

import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.charset.StandardCharsets;
import org.apache.beam.model.pipeline.v1.RunnerApi.Pipeline;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.Message;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.Struct;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.util.JsonFormat;

/**
 * Reads the pipeline that the launcher put into the submitted jar. The layout is the one written by Beam's Python
 * launcher, {@code apache_beam.runners.portability.abstract_job_service.UberJarBeamJob}.
 */
public final class PortablePipelineJarUtils {
  private static final String FOLDER = "BEAM-PIPELINE/";

  private PortablePipelineJarUtils() {}

  public static String getDefaultJobName() throws IOException {
    Struct manifest = read(FOLDER + "pipeline-manifest.json", Struct.newBuilder()).build();
    return manifest.getFieldsOrThrow("defaultJobName").getStringValue();
  }

  public static Pipeline getPipelineFromClasspath(String jobName) throws IOException {
    return read(FOLDER + jobName + "/pipeline.json", Pipeline.newBuilder()).build();
  }

  public static Struct getPipelineOptionsFromClasspath(String jobName) throws IOException {
    return read(FOLDER + jobName + "/pipeline-options.json", Struct.newBuilder()).build();
  }

  /** Fields that a newer SDK writes and this runner does not know are left out. */
  private static <B extends Message.Builder> B read(String resource, B builder) throws IOException {
    try (InputStream stream = PortablePipelineJarUtils.class.getClassLoader().getResourceAsStream(resource)) {
      if (stream == null) {
        throw new FileNotFoundException(resource + " is not in the submitted jar");
      }
      Reader json = new InputStreamReader(stream, StandardCharsets.UTF_8);
      JsonFormat.parser().ignoringUnknownFields().merge(json, builder);
      return builder;
    }
  }
}
