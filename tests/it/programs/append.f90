! What Fortran programs append with: no O_APPEND, but a seek to the end.
program append
    implicit none
    integer :: n
    do n = 1, 2
        open(unit=10, file='events', status='old', position='append', action='write')
        write(10, '(a,i0)') 'line ', n
        write(10, '(a)') 'more'
        close(10)
    end do
end program
