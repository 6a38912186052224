// What the page uses of TanStack Table; README.md has the command that bundles it.
export {
  constructTable,
  createFilteredRowModel,
  createSortedRowModel,
  columnFilteringFeature,
  rowSortingFeature,
  tableFeatures,
} from '@tanstack/table-core';
export { storeReactivityBindings } from '@tanstack/table-core/store-reactivity-bindings';
