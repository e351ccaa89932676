# Stands in for the service manager: listens on the datagram socket that it is given, and prints each line that it is told.
use strict;
use warnings;
use IO::Socket::UNIX;
use Socket qw(SOCK_DGRAM);

$| = 1;
my $socket = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => $ARGV[0]) or die "$ARGV[0]: $!";
print "LISTENING\n";
# A descriptor that comes with a message (systemd-notify's barrier) is closed by the kernel, because it is not asked for.
while (defined $socket->recv(my $message, 4096)) {
  print "$_\n" for split /\n/, $message;
}
