/** Codes in words: what an answer did without, why a source brought nothing. The same as in the READMEs' tables. */

const RUNGS = {
  gap: "the demanded click was deleted before it was read",
  restoring: "the profile, or the index, was still being read back",
  "other-bundle": "another bundle encodes the catalog, so its changes are not seen",
  stored: "vectors of some of the user's items were missing",
  popular: "the index did not answer, so popular items stand in",
  none: "the index did not answer, and there was a filter",
  "no-repeats": "without what is bought again",
  "no-new": "without new items",
  "no-similar": "without similar items",
  "no-item": "without items like the named ones",
  unscored: "the bundle's own scores came too late",
};

const LACKS = {
  no_events: "the user has no events that count",
  no_vectors: "none of the user's items has a vector",
  no_session: "the last events are too old for a current session",
  no_new: "there is no new item",
  no_query: "no text was asked for",
  no_text: "the bundle encodes no text",
  no_items: "no item was named",
  no_like: "nothing else is like the named items",
  no_popularity: "nothing is popular yet",
  no_weight: "its weight is 0",
  unknown_items: "the bundle's table knows none of the session's items",
  unavailable: "what it names is not available",
  too_recent: "what the user may want again was taken within the last hour",
  seen_excluded: "what it would bring was seen",
  excluded: "no more items pass the exclusions",
  filtered: "no more items pass the filter",
  hidden: "the user has disliked or hidden what it would bring",
  no_more: "the catalog has no more items",
  empty_catalog: "the catalog has no items",
  not_in_bundle: "the bundle lacks what it needs",
  late: "it failed, or was too late",
};

const said = (table, code) => (Object.hasOwn(table, code) ? table[code] : code);

/** What a degraded answer did without. */
export const rung = (code) => said(RUNGS, code);

/** Why a source brought nothing, or too little. */
export const lack = (code) => said(LACKS, code);
