// The environment that the lab's children start with.

import { NAME } from './names.ts'

/** Ours without what tap and npm put in: a child would load tap's hooks and write .tap/ into its directory. */
export function childEnvironment(): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(
    ([name]) => !/^(NBD_CLONE_LAB|NODE_OPTIONS|NODE_V8_COVERAGE|_?TAP.*|npm_.*)$/i.test(name),
  )
  return { ...Object.fromEntries(kept), NBD_CLONE_LAB_NAME: NAME }
}
