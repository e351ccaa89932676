# Sees every frame on the links of a host, and counts those that hold a text: `perl capture.pl TEXT`. Prints READY, and on
# SIGTERM one line: bytes seen, frames with the text.
use strict;
use warnings;
use Socket;

my ($text) = @ARGV;
$| = 1;
my ($AF_PACKET, $ETH_P_ALL, $SO_RCVBUFFORCE) = (17, 0x0003, 33);
socket my $socket, $AF_PACKET, SOCK_RAW, unpack('S', pack('n', $ETH_P_ALL)) or die "socket: $!";
setsockopt $socket, SOL_SOCKET, $SO_RCVBUFFORCE, pack('i', 64 << 20);
my ($bytes, $found) = (0, 0);
$SIG{TERM} = sub { print "$bytes $found\n"; exit 0 };
print "READY\n";
while (defined(my $got = sysread $socket, my $frame, 1 << 17)) {
  $bytes += $got;
  $found++ if index($frame, $text) >= 0;
}
