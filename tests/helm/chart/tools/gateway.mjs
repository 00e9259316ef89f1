// Validate GRPCRoutes, a JSON array on standard input, with @kubernetes-models/gateway-api; prints a line for each that is refused.
import { readFileSync } from "node:fs";
import { GRPCRoute } from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/GRPCRoute";

for (const route of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new GRPCRoute(route).validate();
  } catch (error) {
    console.log(`${route.metadata.name}: ${error.message}`);
  }
}
