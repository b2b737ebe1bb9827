export { bisector, extent } from "d3-array";
export { cluster, stratify } from "d3-hierarchy";
export { scaleLinear } from "d3-scale";
export { interpolateViridis } from "d3-scale-chromatic";
export { create, select } from "d3-selection";
export { area, line } from "d3-shape";
export { zoom } from "d3-zoom";
