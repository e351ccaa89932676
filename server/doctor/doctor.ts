// clone-server doctor: reads the facts, runs the tables of checks over them, and says how it stands. It changes nothing.

import { toFailure } from '../../shared/failures.ts'
import { checkName } from '../../shared/names.ts'
import { sourcePaths } from '../config/paths.ts'
import { domainSettings, readSourceConfig, type SourceConfig } from '../config/schema.ts'
import { createVirsh, type Virsh } from '../libvirt/virsh.ts'
import { DOMAIN_CHECKS, readDomainFacts } from './domain.ts'
import { exitOf, fail, pass, runChecks, skip, warn, type Check, type Finding } from './finding.ts'
import { HOST_CHECKS, lookAtDirectory, readHostFacts } from './host.ts'
import { LEFTOVER_CHECKS, readJournals, readOverlays } from './leftovers.ts'
import { LIBVIRT_CHECKS, readLibvirtFacts, type LibvirtFacts } from './libvirt.ts'
import { OVERLAY_CHECKS } from './overlay-directory.ts'
import { tlsFolder } from '../tls/paths.ts'
import { lookAtTls } from './tls.ts'
import { askForStatus, judgeServe, type ServeFacts } from './serve.ts'

export interface Diagnosis {
  readonly findings: readonly Finding[]
  /** 0 when nothing failed. */
  readonly exit: number
}

/** Examines this host as a source. @param wanted domains to look at; empty means all that are listed */
export async function examine(configFile: string, wanted: readonly string[]): Promise<Diagnosis> {
  for (const domain of wanted) checkName('domain', domain)
  const host = await runChecks('host', HOST_CHECKS, await readHostFacts())
  let config: SourceConfig
  try {
    config = readSourceConfig(configFile)
  } catch (error) {
    const { message, hint, code } = toFailure(error)
    return diagnosis([
      ...host,
      { about: 'source', check: 'config', ...fail(message, hint, code) },
      {
        about: 'source',
        check: 'everything else',
        ...skip('libvirt, serve, directories and domains need the configuration'),
      },
    ])
  }
  const domains = wanted.length > 0 ? wanted : Object.keys(config.domains)
  const virsh = createVirsh(config.libvirtUri)
  const { serveSocket } = sourcePaths(config, configFile)
  const [libvirt, serve] = await Promise.all([
    readLibvirtFacts(virsh, serveSocket),
    askForStatus(serveSocket),
  ])
  return diagnosis([
    ...host,
    ...(await runChecks('source', SOURCE_CHECKS, { configFile, config, serve })),
    ...(await runChecks('libvirt', LIBVIRT_CHECKS, libvirt)),
    ...(await examineDomains(configFile, config, virsh, libvirt, serve, domains)),
  ])
}

function diagnosis(findings: readonly Finding[]): Diagnosis {
  return { findings, exit: exitOf(findings) }
}

interface SourceFacts {
  readonly configFile: string
  readonly config: SourceConfig
  readonly serve: ServeFacts
}

const SOURCE_CHECKS: readonly Check<SourceFacts>[] = [
  {
    check: 'config',
    look: ({ configFile, config }) => {
      const count = Object.keys(config.domains).length
      if (count === 0) return warn(`${configFile} lists no domain`, 'list one under domains:')
      return pass(`${configFile}, ${count} domain(s)`)
    },
  },
  { check: 'state dir', look: ({ config }) => lookAtDirectory(config.stateDir, false) },
  { check: 'run dir', look: ({ config }) => lookAtDirectory(config.runDir, true) },
  { check: 'serve', look: ({ serve }) => judgeServe(serve) },
  {
    check: 'tls',
    look: ({ configFile, config }) =>
      lookAtTls(sourcePaths(config, configFile).tls, tlsFolder(configFile), Date.now()),
  },
]

async function examineDomains(
  configFile: string,
  config: SourceConfig,
  virsh: Virsh,
  libvirt: LibvirtFacts,
  serve: ServeFacts,
  domains: readonly string[],
): Promise<Finding[]> {
  const journals = await readJournals(sourcePaths(config, configFile).journals)
  const findings: Finding[] = []
  for (const domain of domains) {
    const about = `domain ${domain}`
    if (!Object.hasOwn(config.domains, domain)) {
      const listed = `list it under domains: in source.yaml`
      findings.push({ about, check: 'listed', ...fail('this source does not export it', listed) })
      continue
    }
    const facts = await readDomainFacts({
      domain,
      settings: domainSettings(config, domain),
      virsh,
      libvirt,
      journal: journals.find(one => one.domain === domain)?.journal,
    })
    findings.push(...(await runChecks(about, [...DOMAIN_CHECKS, ...OVERLAY_CHECKS], facts)))
  }
  const directories = Object.keys(config.domains).map(
    domain => domainSettings(config, domain).overlayDir,
  )
  const overlays = await readOverlays(directories)
  const leftovers = { journals, overlays, serve }
  return [...findings, ...(await runChecks('leftovers', LEFTOVER_CHECKS, leftovers))]
}
